"""Reading small YAML files as text: no value is converted, so that `0123`, `1e5`, `no` and `2024-01-01` stay what they are.

PyYAML's own conversion is not used: besides losing how a value was written, it fails with many kinds of errors on tags
such as `!!bool maybe`, and repeats aliases without limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.errors import ConfigError

if TYPE_CHECKING:
    import yaml

LARGEST_BYTES = 2**20
TAG_PREFIX = "tag:yaml.org,2002:"
PLAIN_TAGS = {f"{TAG_PREFIX}{name}" for name in ("str", "int", "float", "bool", "timestamp", "null", "merge", "value")}

Value = str | list[str | None] | dict[str, str | None] | None


def read_mapping(path: Path, what: str) -> list[tuple[str, Value]]:
    """Keys and values of the mapping in a YAML file, in order; a key may be repeated.

    Args:
        what: what the file is, for messages.

    Raises:
        ConfigError: it cannot be read, or is not a mapping of text, lists of text and mappings of text.
    """
    import yaml

    root = root_of(path, what)
    if root is None or is_null(root):
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "text"
        raise ConfigError(f"{path} must contain `key: value` lines, not {kind}")
    pairs = []
    for key_node, value_node in root.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{path} has a list or mapping as a key (line {key_node.start_mark.line + 1})")
        pairs.append((key_node.value, value_of(value_node, f"{key_node.value[:60]!r} in {path}")))
    return pairs


def root_of(path: Path, what: str) -> yaml.Node | None:
    """The syntax tree of the only document in a file; None without one.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not YAML.
    """
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ConfigError(f"{path} is too large for a {what}: it has more than {LARGEST_BYTES:,} bytes")
        return yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{path} is not a {what}: it is nested too deeply") from None


def value_of(node: yaml.Node, origin: str) -> Value:
    """Text, or a list or mapping of text; None for null.

    Raises:
        ConfigError: it is none of these.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [text_of(item, origin) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return dict(text_pairs(node, origin))
    return text_of(node, origin)


def text_pairs(node: yaml.MappingNode, origin: str) -> Iterator[tuple[str, str | None]]:
    names = set()
    for key_node, value_node in node.value:
        name = text_of(key_node, origin)
        if name is None or name in names:
            raise ConfigError(f"{origin}: {name!r} is set twice" if name else f"{origin} has no name for a value")
        names.add(name)
        yield name, text_of(value_node, origin)


def text_of(node: yaml.Node, origin: str) -> str | None:
    import yaml

    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{origin} is nested: a list or mapping can contain only text and numbers")
    if node.tag not in PLAIN_TAGS:
        raise ConfigError(f"{origin} has the tag {node.tag.replace(TAG_PREFIX, '!!')[:60]}, which is not supported")
    return None if is_null(node) else node.value


def is_null(node: yaml.Node) -> bool:
    return node.tag == f"{TAG_PREFIX}null"
