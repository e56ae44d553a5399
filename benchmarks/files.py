"""What becomes of damaged NIfTI files, and how long reading takes: one table each.

    python benchmarks/files.py --data FOLDER [--changes N] [--seed N]     FOLDER holds manifest.json and its volumes

A change is a few random bytes in the header, a field of it set to a random number, a byte of the voxels, or an end cut
off. A file is read rightly where place and values are those of the whole file; what is read to something else is told
by kind, since a changed voxel, or a changed place in a file that has no second one, cannot be known.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from maisi.errors import InvalidRequestError
from maisi.space.files import read_image
from maisi.space.reading import ReadOptions
from maisi.space.volume import Volume

NUM_FILES = 12
KINDS = ("header bytes", "a header field", "a voxel byte", "an end")
OUTCOMES = ("read rightly", "refused", "crashed", "read to something else", "the same, with a warning")


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage NIfTI files and read them; time the reading of whole ones.")
    parser.add_argument("--data", type=Path, required=True, help="folder of manifest.json")
    parser.add_argument("--changes", type=int, default=200, help="changes a file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = [
        options.data / case["image"] for case in json.loads((options.data / "manifest.json").read_text())["cases"]
    ]
    chosen = sorted(images, key=lambda path: path.stat().st_size)[:: max(1, len(images) // NUM_FILES)][:NUM_FILES]
    tell_damage(chosen, options.changes, options.seed)
    tell_time(images)


def tell_damage(paths: list[Path], num_changes: int, seed: int) -> None:
    """The table of outcomes by kind of change, and what was read to something else."""
    counts: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        for path in paths:
            whole = nib.load(path).to_bytes()
            file = Path(folder) / "ct.nii"
            file.write_bytes(whole)
            sound, _ = read_image(file, ReadOptions())
            for _ in range(num_changes):
                kind = KINDS[rng.choice(4, p=(0.35, 0.4, 0.15, 0.1))]
                content, told = damaged(whole, kind, rng)
                file.write_bytes(content)
                outcome, seen = judged(file, sound)
                counts[kind, outcome] += 1
                if outcome in ("read to something else", "crashed"):
                    others[f"{outcome}: {told}: {seen}"] += 1
    print(f"{'':16}" + "".join(f"{outcome:>26}" for outcome in OUTCOMES))
    for kind in (*KINDS, "all"):
        row = [sum(n for (k, o), n in counts.items() if kind in (k, "all") and o == outcome) for outcome in OUTCOMES]
        print(f"{kind:16}" + "".join(f"{number:>26}" for number in row))
    for told, number in others.most_common():
        print(f"{number:5} {told}")


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """A changed copy of a file, and what was changed in words."""
    changed = bytearray(content)
    if kind == "an end":
        keep = int(rng.integers(0, len(content)))
        return content[:keep], "cut"
    if kind == "a voxel byte":
        changed[int(rng.integers(352, len(content)))] ^= int(rng.integers(1, 256))
        return bytes(changed), "voxel"
    if kind == "header bytes":
        places = rng.integers(0, 348, int(rng.integers(1, 4)))
        for place in places.tolist():
            changed[place] = int(rng.integers(0, 256))
        return bytes(changed), " and ".join(sorted({field_at(place) for place in places.tolist()}))
    dtype = nib.Nifti1Header.template_dtype
    header = np.frombuffer(bytes(changed[:348]), dtype).copy()
    name = str(rng.choice([name for name in dtype.names or () if header[name].dtype.kind in "iuf"]))
    field = header[name].reshape(-1)
    field[int(rng.integers(field.size))] = random_number(field.dtype, rng)
    changed[:348] = header.tobytes()
    return bytes(changed), name


def random_number(dtype: np.dtype, rng: np.random.Generator) -> float:
    if dtype.kind == "f":
        return float(rng.choice([0, 1, -1, 2, 0.001, 1000, 1e30, np.nan, np.inf, rng.normal(0, 100)]))
    info = np.iinfo(dtype)
    usual = [n for n in (0, 1, 2, 3, 4, 8, 16, 64, 512) if n <= info.max]
    return int(rng.choice([*usual, info.max, info.min, rng.integers(info.min, info.max)]))


def field_at(place: int) -> str:
    """The name of the header's field that holds a byte."""
    dtype = nib.Nifti1Header.template_dtype
    return next(name for name in reversed(dtype.names or ()) if dtype.fields[name][1] <= place)


def judged(path: Path, sound: Volume) -> tuple[str, str]:
    """What became of a file, and what was seen."""
    try:
        found, findings = read_image(path, ReadOptions())
    except InvalidRequestError:
        return "refused", ""
    except Exception as error:  # noqa: BLE001  # what must not be, and is counted
        return "crashed", f"{type(error).__name__}: {error}"
    is_warned = any(finding.is_warning for finding in findings)
    seen = []
    if found.grid.shape != sound.grid.shape:
        seen.append("size")
    elif not np.array_equal(found.array, sound.array):
        seen.append("values")
    if not np.allclose(found.grid.affine, sound.grid.affine, atol=1e-3):
        seen.append("place")
    if not seen:
        return ("the same, with a warning" if is_warned else "read rightly"), ""
    return "read to something else", " and ".join(seen) + (", with a warning" if is_warned else "")


def tell_time(paths: list[Path]) -> None:
    start, num_voxels = time.perf_counter(), 0
    for path in paths:
        volume, _ = read_image(path, ReadOptions())
        num_voxels += volume.grid.num_voxels
    seconds = time.perf_counter() - start
    print(f"{len(paths)} volumes, {num_voxels / 1e6:.0f} million voxels: {seconds:.2f} s")


if __name__ == "__main__":
    main()
