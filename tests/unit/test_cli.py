import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maisi
from maisi import cli
from maisi.cli import main
from maisi.errors import InvalidRequestError, RunError
from maisi.pipelines.requests import DEFAULT_REGION, GenerateRequest

HEAVY = {"torch", "numpy", "scipy", "nibabel", "pydicom", "highdicom", "safetensors", "PIL", "yaml", "monai"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after some code."""
    return {name.partition(".")[0] for name in all_modules_after(code)}


def all_modules_after(code: str) -> set[str]:
    report = "import sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    assert not modules_after("from maisi.cli import main; assert main(['--help']) == 0") & HEAVY


@pytest.mark.parametrize(
    "command", ["generate", "reconstruct", "info", "doctor", "plan", "convert", "reproduce", "datasets"]
)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    assert not modules_after(f"from maisi.cli import main; assert main(['{command}', '--help']) == 0") & HEAVY


def test_a_training_by_one_process_loads_nothing_that_cuts_tensors_over_several() -> None:
    assert "torch.distributed.tensor" not in all_modules_after("import maisi.recipes.load, maisi.training.diffusion")


def test_the_package_loads_nothing_until_a_name_is_used() -> None:
    assert not modules_after("import maisi") & HEAVY


def test_every_public_name_can_be_imported_and_is_the_one_that_type_checkers_see() -> None:
    for name in maisi.__all__:
        assert getattr(maisi, name) is not None
    tree = ast.parse(Path(maisi.__file__).read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If))
    shown = {n.module: {a.name for a in n.names} for n in guarded.body if isinstance(n, ast.ImportFrom)}
    assert shown == {home: set(names) for home, names in maisi._HOMES.items()}
    assert set(maisi.__all__) <= set(dir(maisi))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'vol'"):
        _ = maisi.vol


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"maisi {maisi.__version__}\n"


def test_without_a_command_the_help_is_shown_and_nothing_done(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "generate" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InvalidRequestError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (RunError("broken"), 1, "error: broken\n"),
        (MemoryError(), 1, "error: out of memory; ask for a smaller size, or give --memory\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "error: out of memory"),
        (ZeroDivisionError("division"), 1, "error: ZeroDivisionError: division (this is a bug"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (SystemExit(143), 143, ""),
    ],
)
def test_every_kind_of_error_has_its_exit_code_and_no_traceback(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert cli._explain(error) == code
    assert capsys.readouterr().err.startswith(said)


def test_help_names_the_defaults_of_the_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    told = " ".join(re.sub(r"[│\n]", " ", capfd.readouterr().out).split())
    fields = GenerateRequest.model_fields
    assert "[default: (chest)]" in told
    assert DEFAULT_REGION == "chest"
    for name in ("bundle", "count", "seed", "steps", "solver", "modality", "format"):
        described = told.partition(f"--{name} ")[2].partition(" --")[0]
        assert f"[default: ({fields[name].default})]" in described, name


def test_doctor_tells_versions_and_what_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    told = capfd.readouterr().out
    assert re.search(r"torch +\d+\.\d+", told)
    assert "threads" in told
    assert re.search(r"convolutions +(compiled for \w+|torch)", told)
    assert re.search(r"precision +default +(float32|bfloat16)", told)
    assert "monai" in told


def test_results_go_to_stdout_and_talk_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    main(["info", "--json"])
    assert capfd.readouterr().out.startswith("[")


def test_a_reader_that_stops_early_gets_no_traceback() -> None:
    command = f"{sys.executable} -m maisi doctor | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr
