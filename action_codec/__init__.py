"""Pure maths of actions: rotations, SE(3) deltas, block layouts, normalizers, chunk switching."""
