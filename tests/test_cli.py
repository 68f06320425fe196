"""The command line as a whole: help with an example for each verb, version, shell completion."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

import mola_core
from mola_core import cli


def verbs() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser()
    actions = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def test_there_are_verbs():
    assert {"init", "status", "export", "run", "verdict", "where"} <= set(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_each_verb_gives_an_example_that_its_parser_takes(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    examples = [line.removeprefix("Example: ") for line in shown if line.startswith("Example: ")]
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "mola"
        assert cli._parser().parse_args(arguments).verb == verb
    for action in verbs()[verb]._actions:
        assert action.help, f"{verb} {action.dest}: says nothing of itself"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("veridct", "mola: no verb 'veridct', did you mean 'verdict'?; see `mola --help`"),
        ("xyzzy", "mola: no verb 'xyzzy'; see `mola --help`"),
        (
            "status smoke",
            "mola status: does not take 'smoke', did you mean '--study smoke'?; see `mola status",
        ),
        ("init a b --model m --task t", "mola init: does not take 'b'; see `mola init --help`"),
        (
            "run --paralel=2",
            "mola run: does not take '--paralel=2', did you mean '--parallel'?; see `mola run",
        ),
        (
            "run --parallel 0",
            "mola run: argument --parallel: must be at least 1, not 0; see `mola run --help`",
        ),
        (
            "train --study smoke",
            "mola train: the following arguments are required: --task, --method, --seed; see",
        ),
        (
            "cell --study smoke --cell cola base x",
            "mola cell: study smoke: no cell cola/base/seedx, did you mean",
        ),
        (
            "cells --study smoke --why cola base 0 --format json",
            "mola cells: --format json: goes without --why",
        ),
        ("knockout --study smoke --by layer", "mola knockout: --by: goes with --task, --method and --seed"),
        (
            "pack --study smoke --out nosuch --no-wheels --without torch",
            "mola pack: --no-wheels: goes without --without",
        ),
        (
            "verdict --study smoke --state --margin 2",
            "mola verdict: --pair, --margin, --endpoint and --looks go with",
        ),
        ("verdict --scores s.csv --study smoke", "mola verdict: --scores: answers a file by itself"),
        (
            "cell --study smoke --results nosuch --cell cola mola-246 0",
            "mola cell: study smoke: no cell cola/mola-246/seed0",
        ),
        (
            "train --study smoke --results nosuch --task no --method base --seed 0",
            "mola train: study smoke: no cell",
        ),
        (
            "examples --study smoke --results nosuch --task no",
            "mola examples: --task no: study smoke has cola",
        ),
        ("tuning --study smoke --results nosuch", "mola tuning: study smoke: has no section `tuning`"),
        ("status --results file.csv", "mola status: argument --results: file.csv is no folder; name another"),
        ("calibrate --out file.csv", "mola calibrate: argument --out: file.csv is no folder; name another"),
        ("verdict --scores file.csv --out file.csv", "mola verdict: argument --out: file.csv is no folder"),
        (
            "export cola/mola-2468/seed0 file.csv/mine --study smoke --results nosuch",
            "mola export: argument DIR: file.csv is no folder, so nothing can stand in it; name another",
        ),
        ("pack --study smoke --out file.csv/a/b", "mola pack: argument --out: file.csv is no folder, so"),
        ("import x --out file.csv/a.parquet", "mola import: argument --out: file.csv is no folder, so"),
        ("status --results file.csv/results", "mola status: argument --results: file.csv is no folder, so"),
        (
            "pack --study smoke --out nosuch --python-version banana",
            "mola pack: --python-version 'banana': write two numbers",
        ),
        ("where --study smoke --results nosuch", "mola where: nosuch/smoke: is not there yet; run the study"),
        ("verify --study smoke --results nosuch", "mola verify: nosuch/smoke: nothing of the study is there"),
    ],
)
def test_a_wrong_command_is_one_line(given, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.csv").write_text("")
    try:
        code = cli.main(given.split())
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said) and err.count("\n") == 1
    assert not (tmp_path / "nosuch").exists()


def test_every_path_is_taken_with_its_home_folder_written_out(tmp_path, monkeypatch):
    """Shells leave the ~ of --out=~/x alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    named = re.compile("file|folder|DIR", re.I)
    seen = 0
    for verb, parser in verbs().items():
        for action in parser._actions:
            if action.nargs == 0 or action.dest in (
                "study",
                "cell",
                "license",
                "pattern",
                "base_model",
                "data",
            ):
                continue
            if named.search(f"{action.help} {action.metavar}") and action.dest != "model":
                assert action.type and action.type("~/x") == tmp_path / "x", f"{verb} {action.dest}"
                seen += 1
    assert seen > 50


def test_the_help_lists_each_verb_once_below_a_heading(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"^([a-z ]+):$", shown, re.M) == list(cli.GROUPS)
    assert sorted(re.findall(r"^  ([a-z]+)(?:  |$)", shown, re.M)) == sorted(verbs())


def test_the_version_stands_in_one_place(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"mola {mola_core.__version__}\n"


def test_bash_completes_verbs_and_options(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "mola"
    script.write_text(capsys.readouterr().out)
    for words, place, wanted in [
        ("mola ver", 1, {"verdict", "verify"}),
        ("mola train --st", 2, {"--study"}),
        ("mola completion b", 2, {"bash"}),
    ]:
        code = (
            f"source {shlex.quote(str(script))}; COMP_WORDS=({words}); COMP_CWORD={place}; "
            f"_shtab_mola; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == wanted


@pytest.mark.parametrize("module", ["pandas", "pydantic"])
def test_a_verb_without_the_harness_says_what_to_install(module):
    """A plain install has the adapter's packages only."""
    code = (
        f"import sys; sys.modules[{module!r}] = None; from mola_core import cli; "
        "sys.exit(cli.main(['collect', '--study', 'smoke', '--results', '/nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f'mola collect: the package {module} is not installed; pip install "mola-core[harness]"'
    ]
