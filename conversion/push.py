"""Upload of a model folder to the Hub: complete, in one commit, or not at all."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from .._version import __version__
from ..configuration import OTHER_FAMILIES, carries_code
from ..configuration.remote_code import remote_code
from ..formats import FormatError, absolute_path, read_json, readable_errors
from ..formats.folder_files import PROOF, stored_weights
from ..formats.layout import LAYOUT_FILE
from ..formats.transformers_folder import refuse_other_model_types
from ..messages import listed, printable, quoted, shown
from ..parity.files import stale_files
from .credentials import find_credentials
from .upload_files import UploadFiles, choose_files, code_files

# Weights of an earlier push could be loaded instead of the new ones, and its proof would be of other weights.
_STALE_FILES = re.compile(rf"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|{PROOF}|{LAYOUT_FILE}")
_REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
    403: "The token may not do this: take one that may write there, from the settings of your account.",
    404: "There is no such repository, or the token may not see it.",
}


@dataclass(frozen=True)
class PushPlan:
    """Everything that a push sends to the Hub, or would send, and removes there."""

    repository: str
    revision: str
    private: bool | None  # None: as the repository is; a new one as its owner's settings say, usually public
    commit_message: str
    files: dict[str, int]  # path in the repository -> bytes
    left_out: dict[str, str]  # path in the folder -> why it is not sent
    proof: str | None  # the verdict in parity.json, None without one
    code: str | None = None  # whose code the folder carries, None without any
    removed: tuple[str, ...] = ()  # files of an earlier push, not known before the Hub was asked
    url: str | None = None  # the address of the commit, None before it

    def describe(self) -> str:
        """Return the plan in words, one fact on each line."""
        visibility = {None: "as it is; a new one as its owner's settings say", True: "private", False: "public"}
        lines = [
            ("repository", self.repository),
            ("revision", self.revision),
            ("visibility", visibility[self.private]),
            ("message", self.commit_message),
            (
                "proof",
                f"the verdict in {PROOF} is {quoted(self.proof)}" if self.proof else "none, parity was not measured",
            ),
            *([("code", self.code)] if self.code else []),
            *(("upload", f"{name}, {size:,} bytes") for name, size in self.files.items()),
            *(("remove", f"{name}, of an earlier push") for name in self.removed),
            *(("leave out", f"{name}, {reason}") for name, reason in self.left_out.items()),
            ("in all", f"{len(self.files)} files, {sum(self.files.values()):,} bytes"),
        ]
        return "\n".join(f"{name:<12}{printable(value)}" for name, value in lines)


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    include: Sequence[str] = (),
    include_code: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> PushPlan:
    """Upload a model folder to a repository of the Hub, which is created if need be, as is the branch `revision`.

    Only what belongs to a model folder is sent (`choose_files`): `include` names further files, and `include_code` adds
    the code that others run with `trust_remote_code`. One commit brings all files and removes what an earlier push left
    of other weights and their proof. `dry_run` asks nothing of the network. `token` is the stored one unless given.

    Raises ValueError for a folder that is not complete, whose certificate says "fail" or is of other files, or with a
    token or a key in a text file; PermissionError where the Hub refuses, OSError where it cannot be reached.
    """
    folder = absolute_path(folder)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"Expected a repository such as owner/name, got {repository!r}. {error}") from error
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, expected one that holds a model.")
    if folder.name.endswith(".partial"):
        raise ValueError(f"{folder} is what an interrupted conversion left. Remove it, and convert again.")
    with readable_errors(folder):
        chosen = choose_files(folder, include, include_code=include_code)
        config, proof = (read_json(folder / name) if name in chosen.files else None for name in ("config.json", PROOF))
        own_code = _own_code(config)
        if problems := [*_missing_parts(folder, chosen, config, own_code), *_proof_faults(folder, proof)]:
            raise ValueError(f"{folder} is not a model folder to push: {'; '.join(problems)}. Convert again.")
        code = _describe_code(folder, chosen.files, own_code)
    if credentials := find_credentials(folder, chosen.files):
        raise ValueError(
            f"{folder} is not pushed: {'; '.join(credentials)}. Take it out, and revoke it if others have seen it."
        )
    plan = PushPlan(
        repository=repository,
        revision=revision or constants.DEFAULT_REVISION,
        private=private,
        commit_message=commit_message or f"Upload {folder.name} with twinlens {__version__}",
        files=chosen.files,
        left_out=chosen.left_out,
        proof=None if proof is None else proof["verdict"],
        code=code,
    )
    if dry_run:
        return plan
    with _readable_errors(repository):
        return _push(folder, plan, HfApi(token=token or True))


def _push(folder: Path, plan: PushPlan, api: HfApi) -> PushPlan:
    repository = api.create_repo(plan.repository, private=plan.private, exist_ok=True).repo_id  # now with its owner
    if plan.revision != constants.DEFAULT_REVISION and not plan.revision.startswith("refs/"):
        api.create_branch(repository, branch=plan.revision, exist_ok=True)
    info = api.model_info(repository, revision=plan.revision)
    if plan.private is not None and plan.private != info.private:
        raise ValueError(
            f"{repository} was to be {'private' if plan.private else 'public'} and exists already as a "
            f"{'private' if info.private else 'public'} one. Change that in its settings on the Hub, or name another."
        )
    existing = [file.rfilename for file in info.siblings or []]
    removed = tuple(name for name in existing if _STALE_FILES.fullmatch(name) and name not in plan.files)
    commit = api.create_commit(
        repository,
        operations=[
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in plan.files),
            *(CommitOperationDelete(path_in_repo=name) for name in removed),
        ],
        commit_message=plan.commit_message,
        revision=plan.revision,
    )
    return replace(plan, repository=repository, private=info.private, removed=removed, url=commit.commit_url)


def _missing_parts(
    folder: Path, chosen: UploadFiles, config: dict[str, Any] | None, own_code: Iterable[str]
) -> list[str]:
    """Return in words why what is chosen of a folder would not load."""
    problems = []
    if config is None or "model_type" not in config:
        problems.append("it has no config.json with a model_type")
    elif config["model_type"] not in [*OTHER_FAMILIES]:
        try:
            refuse_other_model_types(config)
        except FormatError as error:
            problems.append(f"it is of another kind: {str(error).rstrip('.')}")
    problems += [f"it has no {name}, the code of its model" for name in own_code if not (folder / name).is_file()]
    for name in ["config.json", *stored_weights(folder)]:
        if reason := chosen.left_out.get(name):
            problems.append(f"{name} is {reason}")
        elif name not in chosen.files and name != "config.json":
            problems.append(f"it has no {name}")
        elif name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, "np"):
                    pass  # the header and the length were checked
            except SafetensorError as error:
                problems.append(f"{name} is damaged ({error})")
    return problems


def _proof_faults(folder: Path, proof: dict[str, Any] | None) -> list[str]:
    """Return in words why a certificate does not prove that the conversion of this folder is right."""
    if proof is None:
        return []
    if proof.get("verdict") != "pass":
        return [f"the verdict in {PROOF} is {shown(proof.get('verdict', 'missing'))}, not pass"]
    if faults := stale_files(folder, proof):
        return [f"{PROOF} is stale, {listed(faults, ', ')} (remove it to push without a proof)"]
    return []


def _own_code(config: dict[str, Any] | None) -> dict[str, bytes]:
    """Return the code that this version of twinlens writes beside a config.json, by file name."""
    model_type = (config or {}).get("model_type")
    return {name: text.encode() for name, text in remote_code(model_type).items()} if carries_code(model_type) else {}


def _describe_code(folder: Path, files: dict[str, int], own_code: dict[str, bytes]) -> str | None:
    """Return whether the code in a folder is what this version of twinlens writes; None where there is no code."""
    names = [name for name in files if name.endswith(".py")]
    if left_out := sorted(code_files(folder) - {*names}):
        return f"left out, although auto_map names it: {', '.join(left_out)}"
    other = [name for name in names if not _holds(folder / name, own_code.get(name))]
    if other:
        return f"not as twinlens {__version__} writes it, read it before you push: {', '.join(other)}"
    return f"as twinlens {__version__} writes it" if names else None


def _holds(path: Path, content: bytes | None) -> bool:
    return content is not None and path.stat().st_size == len(content) and path.read_bytes() == content


@contextmanager
def _readable_errors(repository: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub, web pages included, into one line that says what to do."""
    try:
        yield
    except (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        # huggingface_hub wraps the error that stopped the upload of a file.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise _readable_error(repository, cause) from error


def _readable_error(repository: str, error: BaseException) -> OSError:
    reason = " ".join(str(error).split())
    if isinstance(error, OfflineModeIsEnabled):
        return OSError("HF_HUB_OFFLINE forbids to push. Unset it, or look at the --dry-run.")
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError(f"Pushing to {repository} needs a token, and none is stored. {_REMEDIES[401]}")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        reason = " ".join((error.server_message or "without a reason").split()).rstrip(".")
        remedy = _REMEDIES.get(status, "Try again.")
        text = f"Pushing to {repository} failed: the Hub answered {status}, {reason}. {remedy}"
        return PermissionError(text) if status in (401, 403) else OSError(text)
    if isinstance(error, HTTPError):
        return OSError(f"Pushing to {repository} failed: {constants.ENDPOINT} cannot be reached ({reason}).")
    return OSError(f"Pushing to {repository} failed: {reason}. Try again.")
