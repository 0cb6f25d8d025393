"""`mbert push`: what is sent, what stays, what is refused, against a stand-in for the Hub on a loopback port."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import TOKEN, HubStandIn
from mbert_command import child, mbert, refused, works
from tiny_models import tiny_bert

from microbert_cli.exporting.push import files_to_push
from microbert_cli.runs.output_dir import stage_output

pytest_plugins = ["hub_stand_in"]  # for the fixture `hub`

STAY = ("manifest.json", "metrics.json", "recipe.resolved.toml", "log.jsonl")
REPOSITORY = "me/tiny-sentiment"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A finished output that looks like an export, with files of the kinds that go and that stay."""
    out = tmp_path / "export"
    with stage_output(out, stage="export", identity={}) as work:
        tiny_bert(work.path, labels=["bad", "good"], layers=1, hidden=8)
        (work.path / "onnx").mkdir()
        (work.path / "onnx" / "model.onnx").write_bytes(b"a graph")
        (work.path / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n", encoding="utf-8")
        for name in STAY[1:]:
            (work.path / name).write_text("{}\n", encoding="utf-8")
    return out


def sent(hub: HubStandIn, name: str = REPOSITORY, branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories["models", name]
    return repository.commits[repository.resolve(branch) or ""]


def expected(export: Path) -> dict[str, bytes]:
    names = ("README.md", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json", "tokenizer_config.json")
    return {name: (export / name).read_bytes() for name in names if (export / name).is_file()}


def run(hub: HubStandIn, cwd: Path, *commands: tuple[str, ...], token: str | None = TOKEN, **env: str) -> list[Any]:
    return child(list(commands), hub.env(**env, **({"HF_TOKEN": token} if token else {})), cwd)


def test_what_would_go_is_listed_and_nobody_is_asked(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = works("push", export, REPOSITORY, "--dry-run")
    for name, content in expected(export).items():
        assert name in done.out and f"{len(content) / 1e3:,.1f}" in done.out
    assert not any(name in done.out for name in STAY)
    assert "nothing was sent" in done.out and "private" in done.out
    listed = works("push", export, REPOSITORY, "--dry-run", "--public", "--json").json
    assert listed["sent"] is False and listed["public"] is True and listed["revision"] == "main"
    sizes = {file["name"]: file["bytes"] for file in listed["files"]}
    assert sizes.items() >= {name: len(content) for name, content in expected(export).items()}.items()
    assert listed["bytes"] == sum(file["bytes"] for file in listed["files"])


@pytest.mark.slow
def test_it_is_sent_in_one_commit_private_by_default(export: Path, hub: HubStandIn, tmp_path: Path) -> None:
    push = ("push", str(export), REPOSITORY)
    first, again, branch, public, short = run(
        hub,
        tmp_path,
        (*push, "--message", "The first"),
        (*push, "--json"),
        (*push, "--revision", "v2", "-m", "On a branch", "-q"),
        (*push, "--public"),
        ("push", str(export), "short", "--public", "--json"),
    )
    assert [done[0] for done in (first, again, branch, public, short)] == [0] * 5, (first, again, branch, public, short)
    repository = hub.repositories["models", REPOSITORY]
    assert repository.private and repository.messages[0] == "The first"
    assert {name: content for name, content in sent(hub).items() if name in expected(export)} == expected(export)
    assert not set(sent(hub)) & set(STAY)
    assert first[1].strip() == f"{hub.endpoint}/{REPOSITORY}/commit/{repository.main}"
    assert json.loads(again[1])["private"] is True and json.loads(again[1])["removed"] == []
    assert branch[2] == "" and set(sent(hub, branch="v2")) == set(sent(hub))
    assert not hub.repositories["models", "tester/short"].private and json.loads(short[1])["repository"] == "tester/short"
    assert hub.outside() == []


@pytest.mark.slow
def test_what_was_sent_is_a_model_for_whoever_loads_it(export: Path, hub: HubStandIn, tmp_path: Path) -> None:
    pushed, answered = run(hub, tmp_path, ("push", str(export), REPOSITORY), ("predict", REPOSITORY, "a lovely boat", "--json"))
    assert pushed[0] == answered[0] == 0, answered[2]
    assert json.loads(answered[1])["label"] in ("bad", "good")


@pytest.mark.slow
def test_files_of_an_earlier_layout_are_removed(export: Path, hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_model(REPOSITORY, {"model.onnx": b"earlier", "onnx/model_q4.onnx": b"earlier", "notes.txt": b"mine"})
    hub.repositories["models", REPOSITORY].private = True
    (done,) = run(hub, tmp_path, ("push", str(export), REPOSITORY, "--json"))
    assert done[0] == 0, done[2]
    assert sorted(json.loads(done[1])["removed"]) == ["model.onnx", "onnx/model_q4.onnx"]
    assert "notes.txt" in sent(hub) and "model.onnx" not in sent(hub) and sent(hub)["onnx/model.onnx"] == b"a graph"


@pytest.mark.slow
def test_a_public_repository_has_to_be_named_so(export: Path, hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_model(REPOSITORY, {"README.md": b"public"})
    push = ("push", str(export), REPOSITORY)
    refusal, allowed = run(hub, tmp_path, push, (*push, "--public"))
    assert refusal[0] == 4 and "[M237]" in refusal[2] and "--public" in refusal[2]
    assert allowed[0] == 0 and sent(hub)["config.json"] == (export / "config.json").read_bytes()


@pytest.mark.slow
def test_without_a_token_and_without_a_hub(export: Path, hub: HubStandIn, tmp_path: Path) -> None:
    push = ("push", str(export), REPOSITORY)
    (bare,) = run(hub, tmp_path, push, token=None)
    assert bare[0] == 4 and "[M236]" in bare[2] and "hf auth login" in bare[2] and hub.requests == []
    (wrong,) = run(hub, tmp_path, push, token="hf_wrong")
    assert wrong[0] == 4 and "[M238]" in wrong[2] and "hf auth login" in wrong[2] and "hf_wrong" not in wrong[2]
    (offline,) = run(hub, tmp_path, push, HF_HUB_OFFLINE="1")
    assert offline[0] == 4 and "[M238]" in offline[2] and "HF_HUB_OFFLINE is set" in offline[2]
    hub.broken = 500
    (broken,) = run(hub, tmp_path, push)
    assert broken[0] == 4 and "[M238]" in broken[2]
    hub.close()
    (gone,) = run(hub, tmp_path, push)
    assert gone[0] == 4 and "[M238]" in gone[2] and "connection" in gone[2]


def test_what_is_no_complete_output_is_refused(export: Path, tmp_path: Path) -> None:
    plain = tiny_bert(tmp_path / "plain", labels=["bad", "good"], layers=1, hidden=8)
    refused(4, "M210", "push", plain, REPOSITORY, "--dry-run")
    refused(4, "M207", "push", tmp_path / "nowhere", REPOSITORY, "--dry-run")
    with stage_output(tmp_path / "scores", stage="evaluate", identity={}) as work:
        (work.path / "metrics.json").write_text("{}", encoding="utf-8")
    refused(4, "M235", "push", tmp_path / "scores", REPOSITORY, "--dry-run")
    (export / "onnx" / "model.onnx").write_bytes(b"another")
    assert "onnx/model.onnx" in refused(5, "M306", "push", export, REPOSITORY, "--dry-run")["what"]
    (export / "manifest.json").unlink()
    refused(4, "M210", "push", export, REPOSITORY, "--dry-run")


@pytest.mark.parametrize("name", ["a b", "a/b/c", "me/..", "me/x.git", "", "me/a--b", "https://hub/me/x"])
def test_what_is_no_name_of_a_repository(export: Path, name: str) -> None:
    refused(2, "M175", "push", export, name, "--dry-run")


def test_a_model_of_one_task_of_several(tmp_path: Path) -> None:
    with stage_output(tmp_path / "several", stage="finetune", identity={}) as work:
        for part in ("best/sst2", "best/rte"):
            tiny_bert(work.path / part, labels=["bad", "good"], layers=1, hidden=8)
    assert set(files_to_push(tmp_path / "several" / "best" / "sst2")) >= {"config.json", "model.safetensors"}
    done = mbert("push", tmp_path / "several" / "best" / "sst2", REPOSITORY, "--dry-run")
    assert done.code == 0 and "no README.md" in done.err
