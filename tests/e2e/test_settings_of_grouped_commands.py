"""A grouped command, such as `maisi labels register`, takes back the settings that it wrote."""

from pathlib import Path

import pytest
from command_line import Maisi

ASKED = {
    "labels register": ("ct.nii.gz", "--atlases", "none.json"),
    "labels generate": (),
    "labels augment": ("map.nii.gz",),
    "labels prepare": ("maps",),
    "evaluate images": ("real", "made"),
    "evaluate memorization": ("made", "real"),
    "evaluate autoencoder": ("real",),
}


@pytest.mark.parametrize("command", ASKED)
def test_settings_of_a_command_are_known_by_its_whole_name(maisi: Maisi, tmp_path: Path, command: str) -> None:
    for written in (command, "generate"):
        (tmp_path / "run.yaml").write_text(f"command: {written}\nno_such_setting: 1\n")
        given = (*command.split(), *ASKED[command], "-c", tmp_path / "run.yaml", "--out", tmp_path / "out.nii.gz")
        answer = maisi(*given)
        assert answer.code == 2
        assert (f"settings of `maisi generate`, not of `maisi {command}`" in answer.err) is (written != command)
        assert ("no_such_setting" in answer.err) is (written == command)
