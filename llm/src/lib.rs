//! The shared text core: tokenizer, decoder, cache, sampling and generation.
