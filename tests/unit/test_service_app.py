"""The web process: who may ask, what is refused and in which words, what there is to ask for."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from made_service import client_of, made_service

from maisi.errors import InvalidRequestError
from maisi.service.database import Database
from maisi.service.kinds import KINDS
from maisi.service.settings import ServeSettings

TOKEN = "0123456789abcdef0123"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(made_service(tmp_path)) as client:
        yield client


def test_the_web_process_imports_no_torch() -> None:
    code = "import sys, maisi.service.app, maisi.cli; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"


def test_each_kind_takes_the_request_of_the_command_of_its_name() -> None:
    from maisi.runs.tasks import task_named

    assert all(task_named(kind.replace("-", " ")).request is model for kind, model in KINDS.items())


def test_a_job_is_accepted_and_says_where_it_is(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json={"kind": "generate", "request": {"seed": 7, "anatomy": ["liver=0.6"]}})
    assert answer.status_code == 202
    job = client.get(answer.headers["location"]).json()
    assert job["state"] == "queued"
    assert job["request"] == {"seed": 7, "anatomy": ["liver=0.6"], "bundle": "ct-small"}
    assert client.get("/v1/jobs?state=queued").json()["jobs"] == [job]


def test_a_key_gives_one_job_however_often_it_is_sent(client: TestClient) -> None:
    body, key = {"kind": "generate", "request": {}}, {"Idempotency-Key": "once"}
    first, second = (client.post("/v1/jobs", json=body, headers=key).json()["id"] for _ in range(2))
    assert first == second
    other = client.post("/v1/jobs", json={"kind": "generate", "request": {"seed": 1}}, headers=key)
    assert other.status_code == 409


def test_wrong_settings_are_told_as_the_command_line_tells_them(client: TestClient) -> None:
    request = {"sed": 4, "steps": "3", "force": 1}
    answer = client.post("/v1/jobs", json={"kind": "generate", "request": request})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "unknown setting 'sed'; did you mean 'seed'?" in answer.json()["detail"]
    mistyped = client.post("/v1/jobs", json={"kind": "generate", "request": {"steps": "3", "force": 1}}).json()
    assert mistyped["errors"] == [
        {"where": "steps", "what": "'3' is not accepted; it should be a number"},
        {"where": "force", "what": "1 is not accepted; it should be true or false"},
    ]


@pytest.mark.parametrize(
    ("kind", "request_", "told"),
    [
        ("generat", {}, "did you mean 'generate'?"),
        ("train-diffusion", {}, "unknown kind of job"),
        ("generate", {"bundle": "/etc"}, "no bundle '/etc' here; accepted: ct-small, ct-segmenter, ct-labels"),
        ("generate", {"label_bundle": "../x"}, "no bundle"),
        ("generate", {"labels": "/etc/passwd"}, "is a path of the server; accepted: upload:ID"),
        ("generate", {"labels": "upload:../../etc"}, "there is no upload"),
        ("generate", {"labels": "job:../../etc/x"}, "there is no job"),
        ("generate", {"compute": {"scratch": "/tmp"}}, "for the server to say"),
        ("generate", {"quality": {"segmenter": "touch {image} {labels}"}}, "no bundle"),
        ("generate", {"reading": {"numbering": "/etc/passwd"}}, "unknown numbering"),
        ("generate-many", {"count": 2, "labels": "/etc/passwd"}, "path of the server"),
        ("generate-many", {"count": 2, "labels": {"choice": ["/etc/passwd"]}}, "is not accepted"),
        ("generate-many", {"count": 2, "across": {"ray": "local"}}, "for the server to say"),
        ("generate-many", {"count": 2, "steps": {"file_of": "/etc"}}, "a folder of the server"),
        ("generate-many", {"count": 2, "groups": {"a": {"labels": {"file_of": "x" * 300}}}}, "a folder of the server"),
        ("generate", [], "no settings"),
    ],
)
def test_no_request_reaches_beyond_what_is_offered(client: TestClient, kind: str, request_: object, told: str) -> None:
    answer = client.post("/v1/jobs", json={"kind": kind, "request": request_})
    assert answer.status_code in (404, 422)
    assert told in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "name", "said", "told"),
    [
        ("evaluate-images", "features", "os:system", "is no name"),
        ("evaluate-images", "features", "a.pt", "is no name"),
        ("evaluate-labels", "segmenter", "touch {image} {labels}", "no bundle"),
    ],
)
def test_no_request_brings_code(tmp_path: Path, kind: str, name: str, said: str, told: str) -> None:
    (tmp_path / "a").mkdir()
    with client_of(made_service(tmp_path, inputs=tmp_path)) as client:
        answer = client.post("/v1/jobs", json={"kind": kind, "request": {"real": "a", "synthetic": "a", name: said}})
        assert told in answer.json()["detail"]


PLAIN = {  # texts that name no file, no bundle and no code
    *("region", "anatomy", "modality", "device", "tumor", "within", "structures", "classes", "add", "leave_out"),
    *("series", "acquisition", "split", "real_split", "synthetic_split", "training_split", "held_out_split"),
    *("by", "asked", "figures", "memory", "host_memory", "groups"),  # what is in groups is checked name by name
}


def test_every_text_of_a_request_is_known_to_name_nothing_or_to_be_checked() -> None:
    from maisi.service.references import BUNDLES, NUMBERINGS, REFUSED, path_settings

    checked = {*BUNDLES, *NUMBERINGS, *REFUSED, *path_settings(), "features"}
    texts = {name for model in KINDS.values() for name in _texts_of(model)}
    assert texts - checked - PLAIN == set()


def _texts_of(model: Any) -> set[str]:
    """Names of settings that hold texts, those of models within among them."""
    found = set()
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            found |= _texts_of(field.annotation)
        elif re.search(r"\bstr\b|Path", str(field.annotation)) and "Literal" not in str(field.annotation):
            found.add(name)
    return found


def test_files_below_the_folder_of_inputs_may_be_named_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").touch()
    (tmp_path / "in" / "out.nii.gz").symlink_to("/etc/passwd")
    with client_of(made_service(tmp_path, inputs=tmp_path / "in")) as client:
        asked = [{"kind": "encode", "request": {"source": name}} for name in ("a.nii.gz", "../b", "out.nii.gz", "x\0")]
        answers = [client.post("/v1/jobs", json=each) for each in asked]
        assert [answer.status_code for answer in answers] == [202, 422, 422, 422]
        assert answers[0].json()["request"]["source"] == "a.nii.gz"


def test_a_full_queue_says_when_to_ask_again(tmp_path: Path) -> None:
    with client_of(made_service(tmp_path, queue=1)) as client:
        body = {"kind": "generate", "request": {}}
        codes = [client.post("/v1/jobs", json=body) for _ in range(2)]
        assert [answer.status_code for answer in codes] == [202, 429]
        assert int(codes[1].headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"NaN", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"kind": "generate"}', "application/json", 422),
        (b"{}", "text/plain", 415),
        (b" " * 2_000_000, "application/json", 413),
    ],
)
def test_what_is_no_request_is_refused(client: TestClient, body: bytes, kind: str, status: int) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["status"]) == (status, status)


def test_a_body_that_is_longer_than_it_said_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/jobs", content=(b" " * 100_000 for _ in range(20)), headers={"content-type": "text/json"})
    assert answer.status_code == 413


def test_a_job_is_cancelled_by_two_clients_and_then_removed(client: TestClient) -> None:
    place = client.post("/v1/jobs", json={"kind": "generate", "request": {}}).headers["location"]
    codes = [client.delete(place).status_code for _ in range(3)]
    assert codes == [202, 204, 404]


def test_a_running_job_is_cancelled_by_two_clients_once(tmp_path: Path) -> None:
    service = made_service(tmp_path)
    with client_of(service) as client:
        place = client.post("/v1/jobs", json={"kind": "generate", "request": {}}).headers["location"]
        job = service.jobs.claim("worker")
        assert job is not None
        assert [client.delete(place).status_code for _ in range(2)] == [202, 202]
        service.jobs.finish(job.id, "worker", "cancelled")
        assert client.get(f"{place}/events").text.count("event: end") == 1
        conflict = client.get(f"{place}/archive")
        assert (conflict.status_code, conflict.json()["accepted"]) == (409, "a job with artifacts")


def test_a_disk_that_is_full_takes_no_job_and_is_told_without_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(made_service(tmp_path)) as client:
        connected = Database.connection.fget
        assert connected is not None

        def full(own: Database) -> sqlite3.Connection:
            connection = connected(own)
            connection.execute("PRAGMA max_page_count = 1")  # as many as there are already
            return connection

        monkeypatch.setattr(Database, "connection", property(full))  # whoever opened it, and when
        body = {"kind": "generate", "request": {"anatomy": ["liver=0.5"] * 1000}}
        answer = client.post("/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["title"]) == (507, "No room"), answer.text
        assert "disk is full; accepted: remove jobs and uploads" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
        assert client.get("/v1/jobs").json() == {"jobs": []}


def test_events_tell_the_end_and_go_on_after_the_last_one_seen(client: TestClient) -> None:
    place = client.post("/v1/jobs", json={"kind": "generate", "request": {}}).headers["location"]
    client.delete(place)
    told = client.get(f"{place}/events").text
    assert "id: 1\nevent: end\n" in told
    assert '"state": "cancelled"' in told
    assert client.get("/v1/jobs/none/events").status_code == 404


def test_a_token_is_asked_for_on_all_but_health(tmp_path: Path) -> None:
    with client_of(made_service(tmp_path, token=TOKEN)) as client:
        assert client.get("/v1/health/live").status_code == 200
        for path in ("/v1/jobs", "/v1/models", "/metrics", "/v1/uploads/x"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for shown in ("Bearer wrong", "Basic " + TOKEN, TOKEN, "Bearer " + TOKEN[:-1]):
            assert client.get("/v1/jobs", headers={"Authorization": shown}).status_code == 401
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_pages_of_other_places_may_not_ask(client: TestClient) -> None:
    body = {"kind": "generate", "request": {}}
    assert client.post("/v1/jobs", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/jobs", headers={"Host": "evil.example"}).status_code == 403
    assert (
        "access-control-allow-origin" not in client.get("/v1/jobs", headers={"Origin": "http://evil.example"}).headers
    )
    assert client.post("/v1/jobs", json=body, headers={"Origin": "http://localhost:8000"}).status_code == 202


def test_a_page_that_is_named_may_ask(tmp_path: Path) -> None:
    origin = "https://viewer.example.org"
    with client_of(made_service(tmp_path, allow_origin=(origin,), token=TOKEN)) as client:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/jobs", headers=asked).headers["access-control-allow-origin"] == origin


def test_every_answer_says_what_a_browser_may_load(client: TestClient) -> None:
    for path in ("/v1/jobs", "/nothing", "/v1/health/live"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"


def test_models_and_labels_are_told(client: TestClient) -> None:
    models = client.get("/v1/models").json()["models"]
    assert [model["name"] for model in models if model["default"]] == ["ct-small"]
    labels = client.get("/v1/labels").json()["labels"]
    tumour = next(each for each in labels if each["name"] == "hepatic tumor")
    assert (tumour["tumour"], tumour["host"], tumour["colour"]) == (True, ["liver"], "#28dc8c")
    assert not any(each["name"].startswith("dummy") for each in labels)


def test_methods_that_clients_invent_are_counted_as_one(client: TestClient) -> None:
    for k in range(3):
        client.request(f"XX{k}", "/v1/health/live")
    told = client.get("/metrics").text
    assert 'method="other"' in told
    assert "XX" not in told


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Origin": "http://["}])
def test_addresses_that_are_none_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/v1/jobs", json={"kind": "generate"}, headers=headers).status_code in (400, 403, 421)


def test_events_after_the_end_are_none(client: TestClient) -> None:
    place = client.post("/v1/jobs", json={"kind": "generate", "request": {}}).headers["location"]
    client.delete(place)
    last = max(int(line[4:]) for line in client.get(f"{place}/events").text.splitlines() if line.startswith("id: "))
    for number in (last, 10**19):
        assert "event:" not in client.get(f"{place}/events", headers={"Last-Event-ID": str(number)}).text


def test_metrics_count_answers_by_route(client: TestClient) -> None:
    client.get("/v1/jobs/none")
    told = client.get("/metrics").text
    assert 'maisi_jobs{state="queued"} 0' in told
    assert 'maisi_http_answers_total{method="GET",route="/v1/jobs/{id}",status="404"} 1' in told


def test_openapi_has_the_requests_of_the_command_line(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    schemas = found["components"]["schemas"]
    assert set(schemas["GenerateRequest"]["properties"]) == set(KINDS["generate"].model_fields)
    assert len(schemas["JobRequest"]["oneOf"]) == len(KINDS)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"token": "short"}, "at least 16"),
        ({"allow_origin": ("*",)}, "is no origin"),
        ({"bundle": ()}, "a service offers a bundle"),
    ],
)
def test_settings_that_open_the_service_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ServeSettings(**settings)


def test_memory_too_little_for_the_workers_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"memory: 1\.0 KB are too little .* accepted: 1\.2 GB or more"):
        made_service(tmp_path, memory="1KB", workers=2)
    assert not (tmp_path / "data").exists()


def test_a_bundle_or_a_token_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no bundle 'nothing'; accepted: ct-labels, ct-segmenter, ct-small"):
        made_service(tmp_path, bundle=("nothing",))
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(InvalidRequestError, match="holds no token"):
        made_service(tmp_path, token_file=tmp_path / "token")
