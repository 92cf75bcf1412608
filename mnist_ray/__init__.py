"""mnist_ray: train a small CNN on MNIST with Ray Train, search its hyperparameters with Ray Tune."""

__version__ = "0.1.0"
