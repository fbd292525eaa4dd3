"""From text to batches: corpora, tokenizer, token files, mixture and loader, all without torch."""
