"""The page of `maisi serve` in a real browser."""

import re
from pathlib import Path
from typing import Any

import pytest
from stub import Stub

pytestmark = pytest.mark.timeout(900)


def generate(page: Any) -> None:
    """Ask for a small CT by the form, and wait for its picture."""
    page.get_by_role("button", name="Generate", exact=True).click()
    shown(page)


def shown(page: Any) -> None:
    """Wait for a picture."""
    page.locator("body.has-result canvas.planes").first.wait_for()
    page.wait_for_function("document.querySelector('.viewer:not(.loading) .crosshair .hu') !== null")


def colours(page: Any, canvas: str = "canvas.planes") -> int:
    """How many different colours a canvas shows: one is an empty picture."""
    data = page.locator(canvas).first.screenshot()
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return len(picture.convert("RGB").getcolors(1 << 24) or [])


def test_from_the_form_to_a_picture_with_labels_and_a_report(page: Any, service: Stub) -> None:
    page.get_by_text("Abdomen", exact=True).click()
    page.get_by_role("combobox", name="Add a structure or tumour").fill("hepatic tu")
    page.keyboard.press("Enter")
    page.get_by_label("hepatic tumor: how much").fill("25")
    page.get_by_label("Seed").fill("7")
    page.get_by_text("about 12 s").wait_for()
    page.get_by_role("button", name="Generate", exact=True).click()
    shown(page)
    asked = service.requests[-1]
    assert asked["kind"] == "generate"
    assert asked["request"] | {"bundle": "ct-small"} == {
        "region": "abdomen", "anatomy": ["hepatic tumor=25mm"], "seed": 7, "solver": "multistep", "bundle": "ct-small",
    }
    assert colours(page) > 200
    assert page.locator(".legend li").count() > 10
    page.get_by_role("tab", name="Quality").click()
    assert page.locator("table.quality tbody tr").count() > 10


def test_the_crosshair_tells_hu_and_structure_and_obeys_the_keys(page: Any) -> None:
    generate(page)
    page.get_by_role("button", name="Liver", exact=True).click()
    page.wait_for_function("document.querySelector('.crosshair .structure').textContent === 'liver'")
    assert re.fullmatch(r"-?\d+ HU", page.locator(".crosshair .hu").inner_text())
    before = page.locator(".crosshair .mm").inner_text()
    page.locator("canvas.planes").focus()
    page.keyboard.press("PageUp")
    after = page.locator(".crosshair .mm").inner_text()
    assert float(after.split()[2]) == pytest.approx(float(before.split()[2]) + 5, abs=0.2)
    page.keyboard.press("2")
    assert page.get_by_role("button", name="Lung", exact=True).get_attribute("aria-pressed") == "true"
    assert page.locator(".level").inner_text().split() == ["L", "-600", "W", "1500"]


def test_structures_go_off_and_on(page: Any) -> None:
    generate(page)
    with_labels = colours(page)
    page.get_by_role("button", name="Hide all structures").click()
    page.wait_for_function("[...document.querySelectorAll('.legend input')].every((box) => !box.checked)")
    assert colours(page) < with_labels
    page.get_by_role("button", name="Show all structures").click()
    assert page.locator(".legend input:not(:checked)").count() == 0


def test_a_clicked_place_becomes_an_inpainting_shown_beside_its_original(page: Any, service: Stub) -> None:
    generate(page)
    page.get_by_role("button", name="Liver", exact=True).click()
    page.get_by_role("button", name="Place a tumour").click()
    box = page.locator("canvas.planes").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.25)
    page.get_by_label("Tumour", exact=True).select_option("hepatic tumor")
    page.get_by_label("Diameter", exact=True).fill("30")
    place = page.locator(".crosshair .mm").inner_text()
    page.get_by_role("button", name="Put it there").click()
    page.wait_for_function("document.querySelectorAll('.pane').length === 2 && !document.querySelector('.viewer.loading')")
    request = service.requests[-1]["request"]
    first = next(job for job in service.jobs.values() if job["kind"] == "generate")
    assert service.requests[-1]["kind"] == "inpaint"
    assert request["source"] == f"job:{first['id']}/sample_000_ct.nii.gz"
    assert request["labels"] == f"job:{first['id']}/sample_000_labels.nii.gz"
    assert (request["tumor"], request["diameter"]) == ("hepatic tumor", 30)
    assert request["at"] == pytest.approx([float(each) for each in place.replace("mm", "").split()], abs=0.11)
    page.get_by_role("tab", name="Quality").click()
    page.get_by_role("heading", name="Hepatic tumor").wait_for()


def test_a_dropped_label_map_is_shown_and_can_be_followed(page: Any, service: Stub, results: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a file").first.click()
    chooser.value.set_files(results / "made" / "sample_000_labels.nii.gz")
    page.locator("body.has-result .legend li").first.wait_for()
    assert page.get_by_label("Labels", exact=True).input_value() == "upload:up0"
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function("location.hash.startsWith('#job=')")
    assert service.requests[-1]["request"]["labels"] == "upload:up0"
    assert "region" not in service.requests[-1]["request"]


def test_a_job_is_cancelled_and_repeated(page: Any, service: Stub) -> None:
    service.step_seconds = 5
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="The job was cancelled").wait_for()
    service.step_seconds = 0.05
    page.locator(".card").get_by_role("button", name="Repeat").click()
    shown(page)
    assert service.requests[0] == service.requests[1]


def test_a_failed_job_says_why(page: Any, service: Stub) -> None:
    service.problem = {"title": "It failed", "status": 500, "detail": "liver: 9000 ml do not fit", "accepted": "up to 3000 ml"}
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("heading", name="The job failed").wait_for()
    assert "liver: 9000 ml do not fit" in page.locator(".card").inner_text()
    assert "Accepted: up to 3000 ml" in page.locator(".card").inner_text()


def test_a_field_that_cannot_be_is_marked_while_it_is_filled_in(page: Any) -> None:
    page.get_by_label("Size in voxels, x").fill("400")
    for axis in "yz":
        page.get_by_label(f"Size in voxels, {axis}").fill("64")
    page.get_by_text("at most 128 x 128 x 144").wait_for()
    assert page.get_by_label("Size in voxels, x").get_attribute("aria-invalid") == "true"


def test_a_full_queue_says_when_to_come_back(page: Any, service: Stub) -> None:
    service.is_full = True
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("The queue is full.").wait_for()
    assert "A place is likely in 7 s" in page.locator(".trouble").inner_text()
    service.is_full = False
    page.get_by_role("button", name="Try again").click()
    page.wait_for_function("location.hash.startsWith('#job=')")


def test_a_lost_connection_is_told_and_mended(page: Any, service: Stub) -> None:
    service.step_seconds = 1
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.context.set_offline(True)
    page.get_by_label("Seed").fill("5")  # asks for a plan
    page.get_by_text("The connection to the service is lost.").wait_for()
    page.context.set_offline(False)
    page.locator("#banner").wait_for(state="hidden")
    service.step_seconds = 0.02
    shown(page)


def test_a_token_is_asked_for_and_asked_again_once_it_has_expired(page: Any, service: Stub) -> None:
    service.token = "first-token-of-all"
    page.reload()
    page.get_by_role("heading", name="Token needed").wait_for()
    page.get_by_label("Token", exact=True).fill(service.token)
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    service.token = "second-token-of-all"
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("The token is not accepted any more").wait_for()
    page.get_by_label("Token", exact=True).fill(service.token)
    page.get_by_role("button", name="Go on").click()
    shown(page)
    assert page.evaluate("localStorage.getItem('maisi-token')") is None


def test_it_works_on_a_phone_and_by_keyboard_alone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("navigation").get_by_role("button", name="Jobs").click()
    page.get_by_text("No jobs yet.").wait_for()
    page.get_by_role("navigation").get_by_role("button", name="New").click()
    page.get_by_role("button", name="Generate", exact=True).focus()
    page.keyboard.press("Enter")
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_that_can_be_used_has_a_name(page: Any) -> None:
    generate(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas, [role]")]
        .filter((each) => each.checkVisibility() && !each.getAttribute("aria-label") && !each.getAttribute("aria-labelledby"))
        .filter((each) => !each.textContent.trim() && !each.labels?.length)
        .map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
