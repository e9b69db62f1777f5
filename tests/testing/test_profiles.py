"""The Hypothesis profiles, and the workflow that runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import settings

from tests.profiles import scaled

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROFILES = ("dev", "ci", "nightly")


def test_each_profile_tries_more_than_the_one_before() -> None:
    numbers = [
        (profile.max_examples, profile.stateful_step_count)
        for profile in map(settings.get_profile, PROFILES)
    ]
    assert numbers == sorted(set(numbers))


def test_a_share_of_a_profile_is_at_least_one() -> None:
    profile = settings()
    share = scaled(examples=0.5, steps=2)
    assert share.max_examples == round(profile.max_examples / 2)
    assert share.stateful_step_count == profile.stateful_step_count * 2
    assert scaled(examples=1e-9).max_examples == 1


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "dev"),
        ({"CI": "true"}, "ci"),
        ({"CI": "1", "HYPOTHESIS_PROFILE": "nightly"}, "nightly"),
    ],
)
def test_examples_are_random_and_kept_whatever_the_environment(
    environ: dict[str, str], expected: str
) -> None:
    """Hypothesis itself turns both off where CI is set."""
    code = (
        "from hypothesis import settings; from tests.profiles import register; register()\n"
        "now = settings(); print(now.derandomize, now.database is None, now.print_blob,"
        f" now.max_examples == settings.get_profile({expected!r}).max_examples)"
    )
    clean = {k: v for k, v in os.environ.items() if k not in {"CI", "HYPOTHESIS_PROFILE"}}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | environ,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False", "True", "True"]


def matrix(workflow: str, name: str) -> set[str]:
    """The values of one axis: `name: [...]`, or `name: "value"` in an included row."""
    found: set[str] = set()
    for values in re.findall(rf'\b{name}: (\[[^\]]*\]|"[^"]*")', workflow):
        found |= set(re.findall(r'"([^"]*)"', values))
    return found


def test_the_workflow_covers_every_python_and_every_postgresql() -> None:
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = set(re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    assert matrix(workflow, "python") == versions
    assert matrix(workflow, "postgresql") == {"14", "15", "16", "17", "18"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_and_name_what_exists(path: Path) -> None:
    text = path.read_text()
    assert "\t" not in text
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert all(re.fullmatch(r"actions/[\w/-]+@v\d+", action) for action in actions)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"run: make ([\w-]+)", text)) <= set(targets)
    folders = re.findall(r"\btests/\w+", text)
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_the_nightly_run_keeps_its_examples_also_when_it_fails() -> None:
    text = (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    steps = re.split(r"^      - ", text, flags=re.MULTILINE)
    [save] = [step for step in steps if "cache/save" in step]
    assert "if: always()" in save
    assert "path: .hypothesis" in save
