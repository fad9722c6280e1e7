"""One thin KFP component per stage, which translates its arguments; their images; and versions of the pool on DVC."""
