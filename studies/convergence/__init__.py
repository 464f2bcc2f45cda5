"""Whether, and when, correcting gradients helps."""
