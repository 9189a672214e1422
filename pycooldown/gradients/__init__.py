"""The variance of stochastic gradients: closed forms (`theory`), and measurements on a model (`variance`)."""
