"""An executor whose steps run on several workers, one per rank."""
