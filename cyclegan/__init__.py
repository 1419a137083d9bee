"""Distributed CycleGAN training and bulk image translation on Ray."""

__version__ = "0.1.0"
