"""Uploads: a scan or a label map, which requests then name by its id."""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from maisi.service.problems import responses
from maisi.service.routes.artifacts import ONE_FILE, send_file
from maisi.service.service import Ours
from maisi.service.uploads import About, Upload

router = APIRouter(tags=["uploads"])

UploadId = Annotated[str, Path(description="Id of an upload.", max_length=64)]
OCTETS = "application/octet-stream"
BODY = {
    "requestBody": {"required": True, "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}},
}


@router.post(
    "/v1/uploads",
    status_code=201,
    response_model=Upload,
    responses=responses(413, 415, 422, 503, 507),
    openapi_extra=BODY,
)
async def send(
    request: Request,
    service: Ours,
    name: Annotated[
        str,
        Query(min_length=1, max_length=255, description="Ends in .nii, .nii.gz, .nrrd, .mha, .dcm or .zip (DICOM)."),
    ],
    kind: Annotated[
        Literal["image", "labels"] | None, Query(description="What it is, where that is not plain.")
    ] = None,
    series: Annotated[
        str | None, Query(max_length=64, description="The series (UID) to take of a zip that holds several.")
    ] = None,
    numbering: Annotated[
        str | None, Query(max_length=40, description="Whose numbers a label map's ids are, such as totalsegmentator.")
    ] = None,
) -> Response:
    """Send a file as the body. It is read, and what it is comes back; it stays for as long as results do."""
    told = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if told != OCTETS:
        raise HTTPException(415, f"a body of {told or 'nothing'}; accepted: {OCTETS}, the bytes of the file")
    about = About(kind=kind, series=series, numbering=numbering)
    upload = await service.uploads.receive(name, request.stream(), about)
    return JSONResponse(upload.model_dump(mode="json"), 201, {"Location": f"/v1/uploads/{upload.id}"})


@router.get("/v1/uploads/{id}", response_model=Upload, responses=responses(404, 422))
def one(id: UploadId, service: Ours) -> Any:
    """What an upload is."""
    return service.uploads.get(id)


@router.get(
    "/v1/uploads/{id}/volume.nii.gz",
    response_class=FileResponse,
    responses=ONE_FILE,
)
def volume(id: UploadId, request: Request, service: Ours) -> Response:
    """The upload as NIfTI, along RAS; labels in the ids of GET /v1/labels."""
    return send_file(service.uploads.shown(id), "volume.nii.gz", request)


@router.delete("/v1/uploads/{id}", status_code=204, responses=responses(404, 422))
async def remove(id: UploadId, service: Ours) -> Response:
    """Remove an upload."""
    await to_thread.run_sync(service.uploads.remove, id)
    return Response(status_code=204)
