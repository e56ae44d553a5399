"""Every command that the guides print exists, with its options and the recipes and bundles that it names."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main

from maisi.bundle.places import packaged_names
from maisi.cli import app
from maisi.recipes.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(maisi [^`]+)`")
TRAININGS = ("autoencoder", "diffusion", "controlnet", "labels", "recipe")
PLACEHOLDER = re.compile(r"^\W|[A-Z./$<>{}*]|^my-")


def commands(text: str) -> Iterator[str]:
    """Command lines of maisi: of blocks whole, of sentences as far as they go."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s[|&]{1,2}\s|;\s", line.partition(" #")[0]):
                found = re.search(r"(?:^|-m |&& |\$ )maisi (.*)", part.strip())
                if found:
                    yield " ".join(found[1].split())
    for inline in INLINE.findall(BLOCK.sub("", text)):
        yield " ".join(inline.split()).removeprefix("maisi ")


def check(line: str) -> None:
    words = shlex.split(line)
    found: list[Any] = [typer.main.get_command(app)]
    while words and hasattr(found[0], "commands") and not words[0].startswith("-"):
        if PLACEHOLDER.search(words[0]):
            return
        names = words.pop(0).split("|")
        for name in names:
            assert name in found[0].commands, f"`maisi {line}`: there is no {name}"
        found = [found[0].commands[name] for name in names]
    for command in found:
        options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        for word in words:
            if re.match(r"^--?[a-zA-Z]", word):
                for option in word.partition("=")[0].split("|"):
                    known = option in options or option in ("--help", "-h")
                    assert known, f"`maisi {line}`: {command.name} has no {option}"
    trained = words[:1] if line.startswith("train ") and found[0].name in TRAININGS else []
    for name in trained:
        if not PLACEHOLDER.search(name):  # no option either
            load_recipe(name)
    for option, name in pairwise(words):
        if option in ("--bundle", "-b") and not PLACEHOLDER.search(name) and "-" in name:
            assert name in packaged_names(), f"`maisi {line}`: no packaged bundle {name}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page: str) -> None:
    for line in commands((ROOT / page).read_text(encoding="utf-8")):
        check(line)


def test_the_check_finds_what_does_not_exist() -> None:
    check("train diffusion|controlnet tiny --manifest STORE --bundle ct-small --out out -s a.b=1")
    check("generate --count 3 --out out")
    for wrong in (
        "train vae",
        "train diffusion diffusion-tiny --out out",
        "generate --cuont 3",
        "generate --bundle ct-smal",
        "prepair in",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check(wrong)
    assert list(commands("```bash\nmaisi info a.nii \\\n  --json  # tells\n```\n`maisi plan --train tiny`")) == [
        "info a.nii --json",
        "plan --train tiny",
    ]
