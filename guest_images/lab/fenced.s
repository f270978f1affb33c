# Measured loops for CPUs that run them: see exits.inc.
        .set    FENCED, 1
        .include "exits.inc"
