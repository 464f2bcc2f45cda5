"""How far the batch can grow under each optimizer's scaling rule."""
