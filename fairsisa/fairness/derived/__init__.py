"""The optimal derived predictor: criteria, the joint of groups, labels and states, and the programs over it."""
