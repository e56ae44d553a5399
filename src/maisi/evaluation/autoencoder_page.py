"""The page of what an autoencoder keeps."""

from html import escape

from maisi.evaluation.autoencoder import AutoencoderReport, GroupFidelity
from maisi.evaluation.page import Bar, bars, page, table, told

DIGITS = {"psnr_db": 2, "ssim": 4, "lpips": 4, "edges": 4}
WORDS = {
    "psnr_db": "PSNR dB",
    "ssim": "SSIM",
    "mae_hu": "MAE HU",
    "bias_hu": "bias HU",
    "lpips": "LPIPS",
    "edges": "edge distance",
}


def autoencoder_page(found: AutoencoderReport) -> str:
    """PSNR by group beside the blur, all figures of each group, and each case."""
    peaks = [
        (f"{group.name}, {words}", each.mean, each.low, each.high)
        for group in found.groups
        for words, each in (
            ("autoencoder", group.reconstruction["psnr_db"]),
            ("box blur", group.blur["psnr_db"]),
        )
    ]
    cases = [
        (c.id, c.group, f"{c.reconstruction.psnr_db:.2f}", f"{c.blur.psnr_db:.2f}", f"{c.reconstruction.ssim:.4f}")
        for c in sorted(found.cases, key=lambda case: case.reconstruction.psnr_db)
    ]
    tissues = _tissues(found.groups[0])  # of CTs alone
    parts = [
        f"<h1>The autoencoder of {escape(found.bundle)} on {len(found.cases)} volumes</h1>",
        "<p class='faint'>HU clipped to [-1000, 1000], data range 2000. Beside it the mean of each voxel's 3 x 3 x 3. "
        f"Tissues are told by HU in the original. How volumes look: {escape(found.perceptual)}. Intervals of means: "
        "95 %, over patients.</p>",
        "<h2>PSNR in dB</h2>",
        bars(peaks),
        *(("<h2>Mean absolute error in HU by tissue, all volumes</h2>", bars(tissues)) if tissues else ()),
        *(part for group in found.groups for part in _group(group)),
        "<h2>Cases, worst first</h2>",
        table(("", "group", "PSNR dB", "of the blur", "SSIM"), cases),
        *(f"<p>{escape(note)}.</p>" for note in found.notes),
        *(f"<p>Left out: {escape(each.id)}: {escape(each.words)}.</p>" for each in found.failures),
    ]
    return page("Autoencoder", parts)


def _group(group: GroupFidelity) -> tuple[str, str]:
    title = f"<h2>{escape(group.name)}, {group.num_cases} volumes; {told(group.gain_db, 2)} dB above the blur</h2>"
    return title, table(("", "autoencoder", "box blur"), figure_rows(group))


def _tissues(group: GroupFidelity) -> list[Bar]:
    return [
        (f"{name.removesuffix(' mae_hu')}, {words}", each.mean, each.low, each.high)
        for name in group.reconstruction
        if name.endswith(" mae_hu")
        for words, each in (("autoencoder", group.reconstruction[name]), ("box blur", group.blur[name]))
    ]


def figure_rows(group: GroupFidelity) -> list[tuple[str, str, str]]:
    """Each figure of a group in words, of the autoencoder and of the blur."""
    rows = []
    for name, each in group.reconstruction.items():
        tissue, _, figure = name.rpartition(" ")
        digits, words = DIGITS.get(figure, 1), f"{tissue} {WORDS[figure]}".strip()
        rows.append((words, told(each, digits), told(group.blur[name], digits)))
    return rows
