"""Measures what jaxcl claims, on the machine at hand: ``python -m jaxcl.bench loss``, ``cache`` or ``metric``.

Times are ratios within pairs that were run one after the other; sizes where jaxcl loses are printed like the others.
"""
