"""Looks up the config of a base model by name, without downloading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ModelError
from llmft_cli.base.file_checks import DamagedFile, check_start, reading_foreign
from llmft_cli.base.files import hash_file
from llmft_cli.base.libraries import import_transformers
from llmft_cli.base.reporter import Reporter
from llmft_cli.models import builtin, model_source
from llmft_cli.models.known_configs import known_shape
from llmft_cli.models.model_files import reading_model, weight_files
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def shape_of(config: Config, reporter: Reporter) -> tuple[PreTrainedConfig, bool]:
    """The config of the base model that the settings name, and whether its 16-bit weights are on this machine.

    Looks on this machine, then on the Hub, then in the table of published configs. Nothing large is
    downloaded or converted; the second value is False if the built-in model or a GGUF file is not converted yet.

    Raises:
        ModelError: there is no config, it is not a causal language model's, or the model is already quantised.
    """
    shape, here = found_shape(config, reporter)
    check_can_be_tuned(config, shape)
    return shape, here


def found_shape(config: Config, reporter: Reporter) -> tuple[PreTrainedConfig, bool]:
    file = Path(config.model).expanduser()
    if config.model == builtin.NAME:
        shape = known_shape(config.model)
        assert shape is not None
        return shape, converted(builtin.NAME, builtin.WHEEL_SHA256).is_dir()
    if file.is_file() and file.suffix == ".gguf":
        with reading_model(config.model, file):
            check_start(file)
        shape = read_shape(config.model, file.parent, gguf_file=file.name)
        return shape, converted(file.stem, hash_file(file)).is_dir()
    try:
        source = model_source.resolve(
            config.model, reporter, weights=False, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except ModelError as error:
        published = known_shape(config.model)
        if published is None:
            raise
        reporter.warn(f"{error}; using its published config")
        return published, False
    shape = read_shape(config.model, source.path, trust_remote_code=config.trust_remote_code)
    files = weight_files(config.model, source.path)
    return shape, bool(files) and all(file.is_file() for file in files)


def converted(name: str, sha256: str) -> Path:
    """The directory of a GGUF model's converted 16-bit weights."""
    return builtin.cache_dir() / f"{name}-{sha256[:12]}"


def read_shape(name: str, folder: Path, **options: Any) -> PreTrainedConfig:
    """The config in a model directory, or in the metadata of a GGUF file.

    Raises:
        ModelError: it cannot be read, or needs remote code that is not trusted.
    """
    try:
        with reading_foreign(folder):
            shape: PreTrainedConfig = import_transformers().AutoConfig.from_pretrained(folder, **options)
    except DamagedFile as error:
        raise ModelError(f"the config of {name} {error.reason}") from error
    return shape


def check_can_be_tuned(config: Config, shape: PreTrainedConfig) -> None:
    """Check that QLoRA can fine-tune this model.

    Raises:
        ModelError: the model is already quantised, or is not a causal language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    quantized = getattr(shape, "quantization_config", None)
    if quantized:
        method = quantized.get("quant_method", "unnamed method")
        raise ModelError(
            f"the weights of {config.model} are already quantised ({method})",
            "use the original 16-bit model: --quantization quantises it at load time",
        )
    own_code = config.trust_remote_code and "AutoModelForCausalLM" in (getattr(shape, "auto_map", None) or {})
    if type(shape) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ModelError(
            f"{config.model} is not a causal language model (its model_type is {shape.model_type})",
            f"choose a text generation model, {model_source.BUILTIN_HINT}",
        )
