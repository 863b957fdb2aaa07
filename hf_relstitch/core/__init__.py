"""The mathematics of translating between latent spaces: torch, and nothing else of ours or theirs."""
