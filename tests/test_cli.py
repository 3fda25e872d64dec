"""The command line itself: where output cannot go, and what nobody has foreseen."""

import contextlib
import errno
import io
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

import emc2dist
from emc2dist import cli
from emc2dist.cli import imports
from emc2dist.run.listeners.terminal import Display
from emc2dist.terminal import Patient, Progress, as_json, say

SPEC = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\n"


@pytest.fixture
def validate(tmp_path):
    (tmp_path / "a.yaml").write_text(SPEC)

    def run(*overrides, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=None, **environment):
        command = [sys.executable, "-m", "emc2dist", "validate", str(tmp_path / "a.yaml"), *overrides]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment
        options = {"env": environment, "preexec_fn": preexec_fn, "text": True, "timeout": 60}
        return subprocess.run(command, stdout=stdout, stderr=stderr, **options)

    return run


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error_to_tell(validate, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    done = validate(stdout=writing, PYTHONUNBUFFERED=unbuffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_told_once(validate, unbuffered):
    with open("/dev/full", "w") as full:
        done = validate(stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "emc2dist: stdout: No space left on device; the result could not be written there\n"


def test_messages_that_go_nowhere_change_nothing(validate):
    """A full stderr, one whose reader is gone, and none, among whose bytes the results would be."""
    whole = validate("data.limit=5", "data.limit=6")
    assert "data.limit" in whole.stderr
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full:
        for options in ({"stderr": full}, {"stderr": writing}, {"stderr": None, "preexec_fn": lambda: os.close(2)}):
            done = validate("data.limit=5", "data.limit=6", **options)
            assert (done.returncode, done.stdout) == (0, whole.stdout)
            refused = validate("lr=x", **options)
            assert (refused.returncode, refused.stdout) == (2, "")
    os.close(writing)


class Lost(io.StringIO):
    """A log on a full disk."""

    def write(self, text=""):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = write


def test_what_is_only_told_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Lost())
    say("here")
    with contextlib.redirect_stderr(Patient(sys.stderr)):
        for show in (Display(12, terminal=True), Display(12, terminal=False)):
            show.show({"step": 6, "epoch": 1.0, "loss": 3.0})
            show.close()
        for progress in (Progress(3, unit="image", terminal=True), Progress(3, unit="image", terminal=False)):
            progress.add(2)
            progress.close()


def test_a_write_that_a_package_sets_on_a_stream_of_ours_may_call_the_one_before():
    """As W&B does to stdout and stderr when it is imported."""
    under = io.StringIO()
    for stream in (Patient(under), cli._Results(under)):
        before = stream.write
        stream.write = lambda text, before=before: before(f"{text}!")
        stream.write("here")
    assert under.getvalue() == "here!here!"


def test_every_message_goes_by_the_one_that_may_fail():
    package = Path(cli.__file__).parents[1]
    writers = {path.name for path in package.rglob("*.py") if "file=sys.stderr" in path.read_text()}
    assert writers == {"terminal.py"}


def test_json_has_no_nan():
    found = {"loss": math.nan, "more": [math.inf, {"x": -math.inf}], "lr": 0.5, "steps": 3, "none": None, "name": "nan"}
    assert as_json(found) == (
        '{"loss": null, "more": [null, {"x": null}], "lr": 0.5, "steps": 3, "none": null, "name": "nan"}'
    )


def test_json_takes_numbers_of_numpy():
    found = {"count": np.int64(3), "share": np.float32("nan"), "is_any": np.bool_(True), "rows": [np.arange(2)]}
    assert as_json(found) == '{"count": 3, "share": null, "is_any": true, "rows": [[0, 1]]}'


def test_a_name_that_the_terminal_cannot_show_is_no_reason_to_end(validate, tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(SPEC)
    monkeypatch.setattr("emc2dist.cli.runs.dump", lambda spec: "/läufe")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert cli.main(["validate", str(tmp_path / "a.yaml")]) == 0
    assert sys.stdout.buffer.getvalue() == rb"/l\xe4ufe"
    refused = validate(b"run_dir=/l\xe4ufe")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "run_dir: got" in refused.stderr
    assert "not UTF-8" in refused.stderr


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PermissionError(13, "Permission denied", "/x/a"), 2, "/x/a: Permission denied"),
        (OSError(18, "Invalid cross-device link", "/x/a", None, "/y/b"), 2, "/x/a -> /y/b: Invalid cross-device link"),
        (FileNotFoundError(2, "No such file or directory", b"/l\xe4"), 2, r"/l\udce4: No such file"),
        (TimeoutError("two\nlines"), 1, "TimeoutError: two lines"),
        (BrokenPipeError(32, "Broken pipe"), 1, "BrokenPipeError: Broken pipe"),  # another one than stdout
        (MemoryError(), 1, "out of memory; lower batch_size, views.size"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_nobody_has_foreseen_is_one_line_with_its_files(error, status, words, tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise error

    monkeypatch.setattr("emc2dist.cli.runs.load_job", fail)
    assert cli.main(["validate", str(tmp_path / "a.yaml")]) == status
    told = capfd.readouterr().err
    assert told.startswith(f"emc2dist: {words}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), RuntimeError("shapes differ")])
def test_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("emc2dist.cli.runs.load_job", fail)
    with pytest.raises(type(error)):
        cli.main(["validate", "a.yaml"])


def foreign(folder, package, text):
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(text)
    return str(folder)


def test_a_package_of_another_python_is_told_with_what_put_it_there(tmp_path, validate):
    path = foreign(tmp_path / "modules", "yaml", "raise ImportError('for Python 2\\nand so on')")
    done = validate(PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr == (
        f"emc2dist: a package cannot be imported (ImportError: for Python 2; in {path}/yaml/__init__.py); PYTHONPATH "
        f"puts {path} before this environment's packages: unset it (unset PYTHONPATH)\n"
    )


def test_of_errors_about_an_error_the_first_is_told(tmp_path):
    """Ray says that dependencies are missing, NumPy that it is installed badly: what is broken lies below."""
    path = foreign(
        tmp_path, "numpy", "try:\n    import numpy.gone\nexcept ImportError as e:\n    raise ImportError('!') from e"
    )
    command = [sys.executable, "-m", "emc2dist", "certify", "a.yaml", "--out", "a.png"]
    (tmp_path / "a.yaml").write_text(SPEC)
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "(ModuleNotFoundError: No module named 'numpy.gone'; in " in line
    assert f"PYTHONPATH puts {path} before" in line


def beside_a_script(folder, *, name="train.py", **files):
    """What a script says that trains, beside which such files lie; the packages of this environment come after it."""
    script = "import sys\nfrom emc2dist.cli import main\nsys.exit(main(['certify', 'a.yaml', '--out', 'a.png']))\n"
    (folder / "a.yaml").write_text(SPEC)
    (folder / name).write_text(script)
    for package, text in files.items():
        (folder / f"{package}.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, str(folder / name)]
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 120, "cwd": folder}
    done = subprocess.run(command, **options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("package", "text", "error"),
    [
        ("torch", "import torch\n", "ImportError: cannot import name '"),  # found, and not what is wanted
        ("torch", "raise ImportError('mine')\n", "ImportError: mine"),
        ("gzip", "x = 1\n", "AttributeError: module 'gzip' has no attribute"),  # of Python's own library
    ],
)
def test_a_file_beside_the_script_that_is_taken_for_a_package_is_named(package, text, error, tmp_path):
    file = tmp_path / f"{package}.py"
    line = beside_a_script(tmp_path, harmless="import json\n", **{package: text})
    assert f"({error}" in line
    assert line.endswith(
        f"; in {file}); it is taken for {package}, for {tmp_path} stands before this environment's packages: rename it"
    )


def test_a_script_that_has_a_packages_name_is_named(tmp_path):
    line = beside_a_script(tmp_path, name="torch.py")
    assert f"; in {tmp_path}/torch.py); it is taken for torch, for {tmp_path} stands" in line


def test_an_attribute_that_a_module_of_its_own_name_lacks_is_a_fault_of_ours():
    with pytest.raises(AttributeError) as lacking:
        imports.gone  # noqa: B018
    assert imports.explained(lacking.value) is None
    with pytest.raises(AttributeError) as lacking:
        (1).gone  # noqa: B018
    assert imports.explained(lacking.value) is None


def test_a_package_that_pip_left_for_the_user_and_one_that_is_missing(monkeypatch):
    def told(file):
        return imports.explained(ImportError("cannot import name 'a'", name="a", path=file))

    monkeypatch.setattr("site.getusersitepackages", lambda: "/home/me/.local/lib")
    monkeypatch.setattr(sys, "path", ["/home/me/.local/lib", "/env/lib"])
    monkeypatch.setattr(sys, "prefix", "/env")
    assert told("/home/me/.local/lib/numpy/__init__.py").endswith(
        "; in /home/me/.local/lib/numpy/__init__.py); /home/me/.local/lib holds what `pip install --user` left: "
        "PYTHONNOUSERSITE=1 does without it"
    )
    assert told("/env/lib/numpy/__init__.py").endswith("; install emc2dist anew into /env, with what it requires")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "CUDA error: no kernel image is available for execution",
            "this machine has a GPU, and a torch that cannot use",
        ),
        ("CUDA out of memory. Tried to allocate 2 GiB.", "out of memory (CUDA out of memory."),
    ],
)
def test_what_torch_says_of_a_gpu_is_one_line_that_says_what_helps(said, words, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError(f"{said}\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr("emc2dist.cli.runs.load_job", fail)
    assert cli.main(["validate", "a.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"emc2dist: {words}")
    assert "CUDA_VISIBLE_DEVICES" in line


def test_the_version_is_told_with_those_of_what_a_fault_may_be_of(monkeypatch, capsys):
    found = {"torch": "2.13.0+cpu"}

    def version(package):
        if package not in found:
            raise PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr("emc2dist.cli.version", version)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    others = f"torch 2.13.0+cpu, ray is not installed, Python {platform.python_version()}"
    assert capsys.readouterr().out == f"emc2dist {emc2dist.__version__} ({others})\n"


def test_the_version_and_the_command_by_its_package_want_neither_torch_nor_ray(tmp_path):
    path = foreign(tmp_path, "torch", "raise ImportError('here')")
    foreign(tmp_path, "ray", "raise ImportError('here')")
    command = [sys.executable, "-m", "emc2dist", "--version"]
    options = {"env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(command, **options)
    versions = f"(torch {version('torch')}, ray {version('ray')}, Python {platform.python_version()})"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"emc2dist {emc2dist.__version__} {versions}\n", "")


def test_a_working_folder_that_is_gone_is_told(tmp_path):
    """Torch's libraries would end the process."""
    (tmp_path / "gone").mkdir()
    inside = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -m emc2dist evaluate {tmp_path}"
    done = subprocess.run(["sh", "-c", inside], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "emc2dist: the working folder is gone, deleted or made anew since it was entered; cd into one that is there\n"
    )


@pytest.mark.parametrize(
    ("words", "usage", "told"),
    [
        (
            "train a.yaml --batch_size 64",
            "train",
            "--batch_size 64; keys of a spec are no options: write batch_size=64",
        ),
        ("train a.yaml --lr=1e-3 --json", "train", "--lr=1e-3; keys of a spec are no options: write lr=1e-3"),
        (
            "train a.yaml --data.path --json",
            "train",
            "--data.path; keys of a spec are no options: write data.path=VALUE",
        ),
        ("train a.yaml --optimiser.weight-decay 0", "train", "write optimiser.weight_decay=0"),
        ("sweep a.yaml --budget.trials 4", "sweep", "write budget.trials=4"),
        ("sweep a.yaml --set.lr 3", "sweep", "write set.lr=3"),
        ("evaluate runs/a --s3.endpoint http://x", "evaluate", "write s3.endpoint=http://x"),
        ("train a.yaml -m lr=1,2", "train", "-m lr=1,2; several values of a key are for `emc2dist sweep`"),
        ("train a.yaml lr=1,2 --multirun", "train", "--multirun; several values of a key are for `emc2dist sweep`"),
        ("evaluate runs/a --lr 3", "evaluate", "unrecognized arguments: --lr 3\n"),
        ("train a.yaml --jsn", "train", "unrecognized arguments: --jsn\n"),
        ("checkpoint ls runs/a --long", "checkpoint ls", "unrecognized arguments: --long\n"),
        ("train", "train", "the following arguments are required: SPEC\n"),
        ("export runs/a", "export", "the following arguments are required: OUT\n"),
    ],
)
def test_words_that_are_not_understood_are_told_with_the_commands_own_usage(words, usage, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.parse(words.split())
    said = capsys.readouterr().err
    assert said.startswith(f"usage: emc2dist {usage} [-h]")
    assert f"emc2dist {usage}: error: " in said
    assert told in said


@pytest.mark.parametrize(
    "words",
    [["report", "runs/a", "--out", "pics\r"], ["profile", "a.yaml", "--trace", "t.json\r"], ["validate", "a.yaml\r"],
     ["train", "a.yaml", "watch.wandb=proj\r"], ["list\r"]],
)  # fmt: skip
def test_a_script_with_windows_line_ends_is_told_so(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = f"emc2dist: {words[-1]!r}: ends in a carriage return: the script has Windows line ends; run dos2unix on it\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("\u2014json", "'\u2014json': begins with a dash, \u2014, U+2014 (EM DASH) where - is meant; write --json\n"),
        ("-\u2013json", "'-\u2013json': begins with a dash, \u2013, U+2013 (EN DASH) where - is meant; write --json\n"),
        ("\u2013lr=1", "where - is meant; write lr=1\n"),
        ("lr\uff1d1", "it holds \uff1d, U+FF1D (FULLWIDTH EQUALS SIGN) where = is meant\n"),
        ("\u00a0--json", "it holds U+00A0 (NO-BREAK SPACE)\n"),
    ],
)
def test_what_looks_like_an_option_or_a_key_is_told_by_its_character(word, message, capsys):
    assert cli.main(["train", "a.yaml", word]) == 2
    assert capsys.readouterr().err.endswith(message)


def test_a_file_may_begin_with_a_dash(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("\u2013a.yaml").write_text("nonsense: 1")
    assert cli.main(["validate", "\u2013a.yaml"]) == 2
    assert "nonsense: unknown key" in capsys.readouterr().err


def test_a_variable_with_a_windows_line_end_is_told_without_its_value(capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret\r")
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith("emc2dist: AWS_SECRET_ACCESS_KEY: ends in a carriage return: the script")


def test_a_variable_that_ends_in_a_newline_is_told_without_its_value(capsys, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key\n")
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith(
        "emc2dist: AWS_ACCESS_KEY_ID: ends in a newline, as of `echo KEY | base64`"
    )


@pytest.mark.parametrize("name", ["/site-packages/ipykernel_launcher.py", "/bin/ipykernel"])
def test_a_notebook_is_told_to_give_the_words(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "-f", "/root/kernel-8d4d.json"])
    assert cli.main() == 2
    assert "give main the words: main(['train', 'SPEC', 'KEY=VALUE'])" in capsys.readouterr().err
    assert cli.main(["validate", "gone.yaml"]) == 2
    assert capsys.readouterr().err.startswith("emc2dist: gone.yaml: cannot be read")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone/set", "data.path: gone/set: no such file or folder in {here}, which `train` refuses unless it"),
        ("there", "data.path: there: the data were not looked at; `train` does that before anything else"),
        ("s3://bucket/set", "data.path: s3://bucket/set: the data were not looked at; `train` does that"),
        ("digits", ""),
    ],
)
def test_data_that_validate_does_not_look_at_are_said(tmp_path, monkeypatch, capsys, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(SPEC)
    (tmp_path / "there").mkdir()
    assert cli.main(["validate", "a.yaml", f"data.path={path}"]) == 0
    told = capsys.readouterr().err
    assert told.startswith(said.format(here=tmp_path)) if said else told == ""


def test_overrides_of_one_command_are_none_of_the_next():
    assert cli.parse(["train", "a.yaml", "--json", "lr=1"]).overrides == ["lr=1"]
    assert cli.parse(["train", "a.yaml"]).overrides == []


def test_a_notebooks_backend_of_matplotlib_is_none_of_ours():
    """It is inherited by commands of another environment, which does not know it."""
    code = "from emc2dist.cli import main; main(['validate', 'gone.yaml']); import emc2dist.plotting"
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "Key backend" not in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [["views.crop=[0.3,", "0.9]"], ["lr", "=", "1e-2"], ["lr=", "1e-2"], ["views.crop=[0.3", ",0.9]"],
     ["views={size:", "8}"]],
)  # fmt: skip
def test_a_value_that_a_shell_took_for_several_words_is_told_so(capsys, words):
    assert cli.main(["train", "a.yaml", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"emc2dist: {' '.join(words)}: a key and its value are one word: without spaces, or in quotes"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["ingest", "shards/a.tar", "shards/b.tar", "set", "s3.attempts=2"],
            "'set': one SOURCE and one DEST are taken, and what follows is written s3.KEY=VALUE; for several files "
            "give the folder that holds them (shards/)",
        ),
        (["ingest", "a.tar", "b.tar", "set"], "give the folder that holds them (./)"),
        (["ingest", "/s/test/0.tar", "/s/train/0.tar", "set"], "give the folder that holds them (/s/)"),
        (["ingest", "test/0.tar", "train/0.tar", "set"], "give the folder that holds them (./)"),
        (["train", "a.yaml", "--json", "b.yaml"], "'b.yaml': one SPEC is taken, and what follows is written KEY=VALUE"),
        (["checkpoint", "ls", "a", "b"], "'b': one RUN is taken, and what follows is written s3.KEY=VALUE"),
        (
            ["evaluate", "a", "b"],
            "'b': one RUN is taken, and what follows is written KEY=VALUE; for several files run it",
        ),
    ],
)
def test_what_a_shell_made_of_a_star_is_told_with_how_many_words_are_taken(capsys, words, message):
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "lr=1e-3", "a.yaml"],
            "'lr=1e-3': SPEC comes before KEY=VALUE; if this is meant as SPEC, write ./lr=1e-3",
        ),
        (["train", "name=x"], "'name=x': SPEC comes before KEY=VALUE"),
        (["sweep", "set.learning_rate=1", "a.yaml"], "'set.learning_rate=1': SPEC comes before KEY=VALUE"),
        (["evaluate", "data.path=x", "runs/a"], "'data.path=x': RUN comes before KEY=VALUE"),
        (["ingest", "a", "s3.attempts=2"], "'s3.attempts=2': DEST comes before s3.KEY=VALUE"),
    ],
)
def test_a_key_in_the_place_of_a_file_is_told_what_comes_first(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"emc2dist: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_called_as_a_key(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "name=x").write_text(SPEC)
    assert cli.main(["validate", "name=x", "lr=2"]) == 0
    assert "lr: 2.0" in capsys.readouterr().out
    assert cli.parse(["validate", "./name=y"]).spec == "./name=y"


def test_a_report_takes_any_number_of_runs():
    assert cli.parse(["report", "a", "--json", "b"]).overrides == ["b"]


@pytest.mark.parametrize(
    ("home", "words"),
    [
        (None, f"is not set, and this user ({os.getuid()}) has no entry in /etc/passwd"),
        ("~", "is '~'"),
        ("a", "is 'a'"),
    ],
)
def test_without_a_home_nothing_is_made_of_a_tilde(home, words, tmp_path, monkeypatch, capsys):
    """As in a container of an arbitrary user, by systemd, or where a Dockerfile says ENV HOME=~."""

    def unknown(user):
        raise KeyError(user)

    (tmp_path / "a.yaml").write_text(SPEC)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["validate", str(tmp_path / "a.yaml")]) == 0
    capsys.readouterr()
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    assert cli.main(["validate", str(tmp_path / "a.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"emc2dist: HOME: {words}; set it to a folder by its whole path, best to one that may be written to\n"
    )
