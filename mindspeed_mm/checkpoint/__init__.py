"""Files of weights and training state: where they lie, how they are written safely, how their layouts change."""
