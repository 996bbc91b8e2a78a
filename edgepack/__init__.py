"""edgepack: from a trained model to a verified, measured bundle for an edge device."""

__version__ = "0.1.0"
