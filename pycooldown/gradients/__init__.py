"""The variance of stochastic gradients: closed forms (`theory`), and measured on a model (`variance`)."""
