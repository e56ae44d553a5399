"""Which structures touch in real label maps, wherever both are there and whole.

    python benchmarks/reference_neighbours.py DATA

DATA holds label_maps/index.json and manifest.json. Of the maps of the training split, pairs count that the field of
view does not cut; two structures touch when voxels of them share a face. Writes
src/maisi/anatomy/reference_neighbours.yaml: for each structure those that it touches in every map, of four or more.
"""

import argparse
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from reference_pieces import labelled_maps

from maisi.anatomy import references
from maisi.anatomy.measure import contacts, extents
from maisi.anatomy.vocabulary import load_vocabulary

LEAST_MAPS = 4
LEAST_VOXELS = 200
LEFT_OUT = ("targets", "tumours", "cysts", "dummies", "tissues")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    maps = labelled_maps(parser.parse_args().data)
    vocabulary = load_vocabulary()
    left_out = {id for name in LEFT_OUT if name in vocabulary.groups for id in vocabulary.group(name)}
    left_out |= {vocabulary.id(name) for name in ("body", "fat", "air") if name in vocabulary.names}
    seen: dict[tuple[int, int], int] = defaultdict(int)
    apart: set[tuple[int, int]] = set()
    count = 0
    for labels in maps:
        count += 1
        found, touching = extents(labels), contacts(labels)
        whole = sorted(id for id, e in found.items() if not e.is_cut and e.voxels >= LEAST_VOXELS)
        for pair in combinations([id for id in whole if id not in left_out], 2):
            seen[pair] += 1
            if pair not in touching:
                apart.add(pair)
    pairs = {pair: number for pair, number in seen.items() if number >= LEAST_MAPS and pair not in apart}
    write(pairs, count)


def write(pairs: dict[tuple[int, int], int], maps: int) -> None:
    vocabulary, neighbours = load_vocabulary(), defaultdict(dict)
    for (a, b), number in sorted(pairs.items()):
        neighbours[vocabulary.name(a)][vocabulary.name(b)] = number
        neighbours[vocabulary.name(b)][vocabulary.name(a)] = number
    head = [
        "# The structures that each structure touches in every real map that shows both whole, and the number of maps.",
        "# Made by benchmarks/reference_neighbours.py.",
        f"source: {maps} label maps (TotalSegmentator, BTCV, TCIA head and neck, VerSe, SPL; training split)",
        "structures:",
    ]
    rows = [
        f"  {name}: {{{', '.join(f'{other}: {number}' for other, number in neighbours[name].items())}}}"
        for name in vocabulary.names
        if name in neighbours
    ]
    path = Path(references.__file__).with_name("reference_neighbours.yaml")
    path.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    print(f"{len(rows)} structures: {path}")


if __name__ == "__main__":
    main()
