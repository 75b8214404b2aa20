"""The way to a model hub, by its own client."""

from __future__ import annotations

from pathlib import Path

from visionzoo.weights.hub import hub_answers, transport_errors


def check_repository(name: str) -> None:
    """
    Raises:
        ValueError: for a name that no hub takes.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name!r} cannot name a repository: {str(error).splitlines()[0]}") from None
    if name.count("/") != 1:
        raise ValueError(f"{name!r} names no owner; write org/name, where org may be your own user name")


def upload(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Make the repository where it is not there yet, and put the files of ``folder`` into it as one commit.

    Returns:
        the address of its page.

    Raises:
        OSError: where the hub cannot be reached.
        ValueError: where it refuses, with what to do.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    if not hub_answers():  # the client tries again and again
        raise ConnectionError("the hub cannot be reached; connect, or write the folder alone by --out FOLDER")
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError:
        raise ValueError("nobody is logged in at the hub; run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ValueError(
                f"the hub does not let you write to {repository} (status {status}); run `hf auth login` with a token "
                "that may write, or name a place of your own"
            ) from error
        raise ValueError(f"the hub refused {repository}: {str(error).splitlines()[0]}") from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            "HF_HUB_OFFLINE is set, so nothing is uploaded; unset it, or give --out FOLDER"
        ) from error
    except transport_errors(OSError) as error:
        raise ConnectionError(f"the hub cannot be reached: {str(error).splitlines()[0]}") from error
    return address
