"""The layers and models: parameters and wiring; the mathematics is in `minivit.ops`."""
