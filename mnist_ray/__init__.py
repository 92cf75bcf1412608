"""mnist_ray: train a small CNN on MNIST with Ray Train, tune it with Ray Tune."""

__version__ = "0.2.0"
