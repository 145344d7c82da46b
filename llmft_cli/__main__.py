"""`python -m llmft_cli` is the `llmft` command."""

from llmft_cli.cli.app import main

if __name__ == "__main__":
    main()
