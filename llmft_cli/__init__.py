"""llmft: fine-tune causal language models with QLoRA, and measure that it worked."""

__version__ = "0.1.0"
