"""A folder as a repository of the Hugging Face hub, behind the hub's own login."""

from __future__ import annotations

from pathlib import Path

from lead.errors import LeadError

# files that not every export has: the hub keeps those of an earlier one unless it is told to delete them
OPTIONAL = ["onnx/*", "vectors/*", "trec/*", "[0-9]_*/*", "head.safetensors"]


def check_login(name: str) -> None:
    """Refuse what is no name of a repository, and an upload without a token. Raises LeadError."""
    from huggingface_hub import constants, get_token, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        try_to_load_from_cache(name, "config.json")  # it checks the name
    except HFValidationError as e:
        raise LeadError(f"--push-to-hub {name}: no name of a repository: {' '.join(str(e).split())}") from None
    if constants.HF_HUB_OFFLINE:
        raise LeadError("--push-to-hub: the hub cannot be asked (HF_HUB_OFFLINE=1); unset it, or leave the option out")
    if get_token() is None:
        raise LeadError("--push-to-hub: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to the repository `name`, which is made if it is not there; return its address.

    What an earlier export had beside the model, and this one has not, is deleted there.
    Raises LeadError for whatever the hub refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message="lead export", delete_patterns=OPTIONAL
        )
    except Exception as e:  # the library promises no exceptions
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise LeadError(f"--push-to-hub {name}: {reason}; the folder {folder} is complete") from e
    return str(url)
