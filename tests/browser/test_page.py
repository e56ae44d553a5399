"""The page of `maisi serve` in a real browser, with a real service behind it."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import LONG, SMALL, Running

pytestmark = pytest.mark.timeout(1200)


def start(page: Any) -> None:
    page.get_by_role("button", name="Generate", exact=True).click()


def wait_for_picture(page: Any) -> None:
    page.locator("body.has-result .crosshair .hu").wait_for()


def job_of(page: Any) -> str:
    """The id of the job that the page shows."""
    page.wait_for_url("**/#job=*")
    return str(page.url).partition("=")[2]


def fill(page: Any, request: dict[str, Any]) -> None:
    """Ask the form for a small phantom."""
    page.get_by_role("radio", name=str(request["region"]).capitalize()).check()
    page.get_by_label("Labels", exact=True).select_option("phantom")
    for text, values in (("Size in voxels", request["size"]), ("Spacing in mm", request["spacing"])):
        for axis, value in zip("xyz", values, strict=True):
            page.get_by_label(f"{text}, {axis}").fill(str(value))
    page.get_by_label("Seed", exact=True).fill(str(request["seed"]))
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill(str(request["steps"]))


def num_colours(page: Any) -> int:
    """How many colours the planes show: an empty picture has few."""
    with Image.open(io.BytesIO(page.locator("canvas.planes").first.screenshot())) as picture:
        return len(picture.convert("RGB").getcolors(1 << 24) or [])


def test_from_the_form_to_a_picture_with_labels_and_a_report(page: Any, service: Running) -> None:
    fill(page, SMALL)
    page.get_by_role("combobox", name="Add a structure or tumour").fill("hepatic tu")
    page.keyboard.press("Enter")
    page.get_by_label("hepatic tumor: how much").fill("40")
    page.locator(".plan dd", has_text=re.compile(r"\d+ (MB|GB)")).wait_for()
    start(page)
    wait_for_picture(page)
    request = service.newest()["request"]
    assert {name: request[name] for name in SMALL} == SMALL
    assert request["anatomy"] == ["hepatic tumor=40mm"]
    assert num_colours(page) > 200
    assert page.locator(".legend li.tumour").first.inner_text().startswith("Hepatic tumor")
    page.get_by_role("tab", name="Quality").click()
    assert page.locator("table.quality tbody tr").count() > 10


def test_the_crosshair_tells_hu_and_structure_and_obeys_the_keys(result: Any) -> None:
    result.get_by_role("button", name="Liver", exact=True).click()
    result.locator(".crosshair .structure", has_text=re.compile("^liver$")).wait_for()
    assert re.fullmatch(r"-?\d+ HU", result.locator(".crosshair .hu").inner_text())
    before = result.locator(".crosshair .mm").inner_text()
    result.locator("canvas.planes").focus()
    result.keyboard.press("PageUp")
    after = result.locator(".crosshair .mm").inner_text()
    assert float(after.split()[2]) == pytest.approx(float(before.split()[2]) + 5, abs=0.2)
    result.keyboard.press("2")
    assert result.get_by_role("button", name="Lung", exact=True).get_attribute("aria-pressed") == "true"
    assert result.locator(".level").inner_text().split() == ["L", "-600", "W", "1500"]


def test_structures_go_off_and_on(result: Any) -> None:
    with_labels = num_colours(result)
    result.get_by_role("button", name="Hide all structures").click()
    assert num_colours(result) < with_labels
    result.get_by_role("button", name="Show all structures").click()
    assert result.locator(".legend input:not(:checked)").count() == 0


def test_a_clicked_place_becomes_a_tumour_beside_its_original(result: Any, service: Running, made: str) -> None:
    result.get_by_role("button", name="Liver", exact=True).click()
    result.get_by_role("button", name="Place a tumour").click()
    result.get_by_label("Tumour", exact=True).select_option("hepatic tumor")
    result.get_by_label("Diameter", exact=True).fill("30")
    box = result.locator("canvas.planes").bounding_box()
    result.mouse.click(box["x"] + box["width"] * 0.15, box["y"] + box["height"] * 0.2)
    result.get_by_role("button", name="Liver", exact=True).click()
    result.get_by_text(re.compile("mm, in liver.")).wait_for()
    place = result.locator(".crosshair .mm").inner_text()
    result.get_by_role("button", name="Put it there").click()
    result.locator(".pane").nth(1).wait_for()
    wait_for_picture(result)
    job = service.newest()
    assert job["kind"] == "inpaint"
    assert job["request"]["source"] == f"job:{made}/sample_000_ct.nii.gz"
    assert job["request"]["labels"] == f"job:{made}/sample_000_labels.nii.gz"
    assert (job["request"]["tumor"], job["request"]["diameter"]) == ("hepatic tumor", 30)
    assert job["request"]["at"] == pytest.approx([float(each) for each in place.replace("mm", "").split()], abs=0.11)
    result.get_by_role("tab", name="Quality").click()
    result.get_by_role("heading", name="Hepatic tumor").wait_for()


def test_a_label_map_that_is_brought_is_shown_and_followed(
    page: Any, service: Running, made: str, tmp_path: Path
) -> None:
    labels = tmp_path / "mine.nii.gz"
    labels.write_bytes(service.bytes_of("GET", f"jobs/{made}/artifacts/sample_000_labels.nii.gz"))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a file").first.click()
    chooser.value.set_files(labels)
    page.locator("body.has-result .legend li").first.wait_for()
    upload = page.get_by_label("Labels", exact=True).input_value()
    assert upload.startswith("upload:")
    start(page)
    request = service.ask("GET", f"jobs/{job_of(page)}")["request"]
    assert request["labels"] == upload
    assert "region" not in request


def test_a_job_is_cancelled_and_repeated(page: Any, service: Running) -> None:
    fill(page, LONG)
    start(page)
    page.get_by_role("button", name="Cancel").first.wait_for()
    first = job_of(page)
    service.until(first, ("running",))
    page.get_by_role("button", name="Cancel").first.click()
    page.get_by_role("heading", name="The job was cancelled").wait_for()
    page.locator(".card").get_by_role("button", name="Repeat").click()
    page.wait_for_url(lambda url: first not in url)
    assert service.newest()["request"] == service.ask("GET", f"jobs/{first}")["request"]


def test_a_job_that_a_program_asked_for_is_changed_as_it_was(page: Any, service: Running) -> None:
    asked = {**SMALL, "region": "belly", "anatomy": ["liver tumor=0.5", "spleen=any"]}
    service.until(service.submit("generate", asked), ("done", "failed"))
    page.reload()
    page.get_by_role("tab", name="Jobs").click()
    page.get_by_role("button", name="Change and start again").first.click()
    assert page.locator("form .pills input:checked").first.get_attribute("value") == "belly"
    wishes = page.locator("form li.wish")
    told = [(each.get_attribute("data-name"), each.locator("select").input_value()) for each in wishes.all()]
    assert told == [("liver tumor", "size"), ("spleen", "any")]


@pytest.mark.parametrize(
    ("kind", "models"),
    [
        ("Generate a CT", ["ct-small"]),
        ("Change a CT: tumours in or out", ["ct-small"]),
        ("Draw a label map", ["ct-labels"]),
        ("Segment a CT", ["ct-segmenter"]),
    ],
)
def test_each_kind_of_job_offers_the_models_that_can_do_it(page: Any, kind: str, models: list[str]) -> None:
    page.get_by_label("What to make").select_option(label=kind)
    assert page.get_by_label("Model", exact=True).locator("option").all_text_contents() == models


def test_a_failed_job_says_why(page: Any, service: Running) -> None:
    id = service.submit("generate", {**SMALL, "anatomy": ["liver=90000ml"]})
    detail = service.until(id, ("failed",))["problem"]["detail"]
    page.goto(f"{service.url}#job={id}")
    page.get_by_role("heading", name="The job failed").wait_for()
    assert " ".join(detail.split()) in " ".join(page.locator(".card").inner_text().split())


def test_what_cannot_be_is_told_while_it_is_filled_in(page: Any) -> None:
    page.get_by_role("combobox", name="Add a structure or tumour").fill("left femur")
    page.keyboard.press("Enter")
    for axis in "xyz":
        page.get_by_label(f"Size in voxels, {axis}").fill("4000")
    page.locator(".plan .problem, .wrong:not([hidden])").first.wait_for()


def test_a_full_queue_says_when_to_come_back(page: Any, service: Running) -> None:
    service.until(service.submit("generate", LONG), ("running",))
    service.submit("generate", LONG)
    fill(page, SMALL)
    start(page)
    page.get_by_text("The queue is full.").wait_for()
    assert "A place is likely in" in page.locator(".trouble").inner_text()
    service.cancel_all()
    page.get_by_role("button", name="Try again").click()
    job_of(page)


def test_a_service_that_stops_is_waited_for(context: Any, guarded: Running) -> None:
    page = context.new_page()
    page.goto(guarded.url)
    page.get_by_label("Token", exact=True).fill(guarded.token)
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Seed", exact=True).wait_for()
    guarded.stop()
    page.get_by_label("Seed", exact=True).fill("5")  # asks for a plan
    page.get_by_text("The connection to the service is lost.").wait_for()
    guarded.start()
    page.locator("#banner").wait_for(state="hidden")
    page.locator(".plan dd").first.wait_for()


def test_a_token_is_asked_for_and_again_once_it_has_expired(context: Any, guarded: Running) -> None:
    page = context.new_page()
    page.goto(guarded.url)
    page.get_by_role("heading", name="Token needed").wait_for()
    page.get_by_label("Token", exact=True).fill(guarded.token)
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Seed", exact=True).wait_for()
    guarded.stop()
    guarded.token = "the-second-token-of-all"
    guarded.start()
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_text("The token is not accepted any more").wait_for()
    page.get_by_label("Token", exact=True).fill(guarded.token)
    with page.expect_response(lambda response: response.url.endswith("/v1/plan") and response.status != 401):
        page.get_by_role("button", name="Go on").click()
    assert page.evaluate("Object.values({ ...localStorage })") == []


def test_it_fits_a_phone_and_needs_no_mouse(context: Any, service: Running, made: str) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 780})
    page.goto(service.url)
    page.get_by_role("navigation").get_by_role("button", name="Jobs").focus()
    page.keyboard.press("Enter")
    page.locator(".job.done .open").last.focus()
    page.keyboard.press("Enter")
    wait_for_picture(page)
    assert page.get_by_role("button", name="Axial").get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_that_can_be_used_has_a_name(result: Any) -> None:
    nameless = result.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas, [role]")]
        .filter((each) => !["status", "alert"].includes(each.role) && each.checkVisibility())
        .filter((each) => !each.getAttribute("aria-label") && !each.getAttribute("aria-labelledby"))
        .filter((each) => !each.textContent.trim() && !each.labels?.length)
        .map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_a_folder_of_files_is_sent_as_a_zip_that_others_can_read(page: Any) -> None:
    given = {"study/1.dcm": "first", "study/Größe/2.dcm": "second" * 1000}
    sent = page.evaluate(
        """async (given) => {
        const { zipped } = await import("/static/zip.js");
        const entries = Object.entries(given).map(([name, text]) => ({ name, file: new Blob([text]) }));
        return [...new Uint8Array(await (await zipped(entries)).arrayBuffer())];
        }""",
        given,
    )
    with zipfile.ZipFile(io.BytesIO(bytes(sent))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name).decode() for name in archive.namelist()} == given
