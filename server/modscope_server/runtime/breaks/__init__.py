"""Conditions that pause a run, in a small grammar of our own. Nothing is ever evaluated as Python.

    condition  = number compared with number, and chains of it | not condition
               | condition and condition | condition or condition | ( condition )
    number     = 1e-3 | inf | nan | step | METRIC | - number | number + - * / number | ( number )
               | STATISTIC ( SELECTOR ) | grad.STATISTIC ( SELECTOR )
    METRIC     = a reported name, such as loss or val/acc; any other name in quotes: "top-5 acc"
    STATISTIC  = count | mean | std | min | max | norm | zeros | nan | inf
    SELECTOR   = GLOB of parameters, or HOOK : GLOB of modules; MODEL/GLOB picks one of several models
    HOOK       = forward_pre | forward | backward_pre | backward

A slash that stands between names without a space is part of a name: `loss/scale` is one metric,
`loss / scale` and `loss/2` are divisions. A statistic of several tensors is that of all of them
together, as if they were one; over the finite elements, `nan` and `inf` counted apart, and nan where
no element is finite. forward means the outputs, forward_pre the inputs, backward_pre the gradients
of the outputs, backward those of the inputs, of all calls since the boundary before.

Numbers are floats of 64 bits as IEEE 754 has them: `loss != loss` is true of nan, and a division by
zero is inf or nan. What is not known, such as a metric that was never reported, makes a comparison
neither true nor false; a condition holds where it is true whatever the unknown would be.

A condition is looked at from the left to the right and no further than its answer needs: with `step >
1000 and norm(*) > 50` no norm is taken before step 1000. What lies on an accelerator is waited for when
a condition looks at it; breaks are the one thing here that can make a loop wait for its device.
"""
