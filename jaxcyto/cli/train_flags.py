"""Parse the flags of train.py, and say in one line what is wrong with them or with a config."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxcyto.cli.moved import new_name

TRAIN = Path(sys.argv[0]).resolve()  # the script itself may stand beside a config
CONFIGS = TRAIN.parent / "configs"


def parse_flags(argv: list[str], config: flags.FlagHolder) -> list[str]:
    """Parse flags with absl, and end with one line instead of a traceback where that fails.

    Args:
        argv: the command line.
        config: the flag of the config file.

    Returns:
        The arguments that are no flags.

    Raises:
        SystemExit: status 2, after one line on stderr; flags or config are wrong.
    """
    match = re.search(r"--config[= ]([^\s:]+)", " ".join(argv))
    path = Path(match[1]).resolve() if match else None
    if path is not None:
        sys.path.append(str(path.parent))  # a config may import its neighbors
    try:
        rest = flags.FLAGS(argv)
        if hasattr(config.value, "data"):  # raises here if the file could not be read
            return rest
        message = f"{path}: get_config() returns {config.value!r}, not a Config or SegmentConfig"
    except Exception as error:  # whatever the code of a config raises
        message = explain_config(error, path)
    print(f"error: {explain_flag(message, argv)}", file=sys.stderr)
    raise SystemExit(2)


def explain_flag(message: str, argv: list[str]) -> str:
    """absl's or ml_collections' message about a flag, in words for those who know neither."""
    if "must have a value other than None" in message:
        missing = " and ".join(re.findall(r"flag (--\w+)=None", message))
        example = "python train.py --config configs/quickstart.py --workdir runs/quickstart"
        return f"{missing} missing, as in: {example}"
    if match := re.search(r"Field (\w+) not found on dataclass .*?\.(\w+)'", message):
        from jaxcyto import config

        fields = list(getattr(getattr(config, match[2]), "__dataclass_fields__", {}))
        hint = did_you_mean(match[1], fields)
        return f"no field {match[1]!r} in {match[2]}; {hint}fields: {', '.join(fields)}"
    if match := re.match(r"Unknown command line flag '(\w+)'", message):
        hint = did_you_mean(match[1], [], ["config", "workdir", "processes", "coordinator"])
        return f"unknown flag --{match[1]}; {hint}fields of the config start with --config."
    items = [word for word in argv if re.match(r"--config\.\S*\[\d+\]", word)]
    if message == "tuple index out of range" and items:
        return f"{items[0].split('=')[0]}: there is no such item; items count from 0"
    if match := re.match(r"Type .* of field (config\.\S+) is not supported", message):
        return f"--{match[1]}: not a number or a text: set it in a config file of your own"
    if not message.startswith("flag "):
        return message
    for pattern, words in (
        (r"invalid literal for int\(\) with base 10: .*", "expected a whole number"),
        (r"could not convert string to float: .*", "expected a number"),
        (r"\('Non-boolean argument to boolean flag', .*\)", "expected True or False"),
        (r"Unable to parse value .*", "expected one of the fields within it, not the whole"),
    ):
        message = re.sub(pattern, words, message)
    return message.removeprefix("flag ")


def did_you_mean(name: str, fields: list[str], flag_names: Sequence[str] = ()) -> str:
    """A guess at what a misspelled field or flag was: one of these, or any field of a config."""
    from jaxcyto.config import Config, SegmentConfig
    from jaxcyto.config_io import field_paths

    if near := difflib.get_close_matches(name, fields, n=1):
        return f"did you mean {near[0]!r}? "
    paths = {f"--{flag}": flag for flag in flag_names}
    for kind in (Config, SegmentConfig):
        paths |= {f"--config.{path}": path.split(".")[-1] for path in field_paths(kind)}
    near = difflib.get_close_matches(name, paths.values(), n=1)
    return next((f"did you mean {key}? " for key, last in paths.items() if [last] == near), "")


def explain_config(error: Exception, path: Path | None) -> str:
    """What is wrong with flags or config; in which line, if the config or a neighbor raised it."""
    if path is not None and not path.is_file():
        folders = {path.parent, path, CONFIGS}
        files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}
        near = difflib.get_close_matches(path.stem, files, n=1)
        hint = f"; did you mean {os.path.relpath(files[near[0]])}?" if near else ""
        return f"--config {path}: {'a folder' if path.is_dir() else 'no such file'}{hint}"
    cause: BaseException | None = error
    while cause is not None:  # absl and ml_collections wrap some kinds of errors, not others
        if isinstance(cause, SyntaxError) and cause.filename == "<unknown>":  # a value in a flag
            return f"a value of a --config flag: {cause.msg}; write tuples as \"('a', 'b')\""
        if isinstance(cause, SyntaxError) and cause.filename:
            return f"{cause.filename}:{cause.lineno}: {cause.msg}"
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            ours = path is not None and Path(frame.filename).parent == path.parent
            if ours and Path(frame.filename) != TRAIN:
                what = new_name(cause) or f"{type(cause).__name__}: {cause}"
                return f"{frame.filename}:{frame.lineno}: {what}"
        cause = cause.__cause__ or cause.__context__
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)
