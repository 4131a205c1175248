#!/usr/bin/env python3
"""Recomputes every score of schemas/score-vectors.json with nothing but integers. See docs/scoring.md."""
import json, sys

V = json.load(open(sys.argv[1] if len(sys.argv) > 1 else "schemas/score-vectors.json"))
EXP2, LOG2, INDICATORS, CAPS = V["exp2_q32"], V["log2_q16"], V["indicators"], V["category_caps_milli"]
ONE, MOST = 1 << 16, 10**14

def exp2_neg(x):  # 2^(-x / 65536) in Q32
    if x >> 16 > 32: return 0
    i, rest = (x & 0xFFFF) >> 6, x & 63
    return (EXP2[i] - ((EXP2[i] - EXP2[i + 1]) * rest >> 6)) >> (x >> 16)

def log2(n):  # log2(n) in Q16
    msb = n.bit_length() - 1
    below = (n << 26 >> msb) & ((1 << 26) - 1)
    i, rest = below >> 16, below & 0xFFFF
    return (msb << 16) + LOG2[i] + ((LOG2[i + 1] - LOG2[i]) * rest >> 16)

def magnitude(i):
    count, m = i["count"], i["magnitude_milli"]
    measure = INDICATORS[i["indicator"]]["measure"]
    if measure == "volume": m = m * (1_000_000 + i["bytes"]) // (count * 1_000_000) if count else 0
    if measure == "steps": m = min(min(m, count * 1000) // 10_000, 3) * 1000
    return min(m, MOST)

def decay(day, half_life, hour):
    age = max(0, hour - (day + 1) * 24)
    return 0 if age > 24 * min(90, 12 * half_life) else exp2_neg(age * ONE // (24 * half_life))

def novel(case, day, i):
    if case["first_day"] is None or case["first_day"] > day - 14: return ONE
    def fresh(names, seen):
        first = dict(map(tuple, seen))
        return min(i["count"], sum(n for name, n in names if 0 <= day - first.get(name, -10**9) <= 7))
    domains, devices = case["seen"]["domains"], case["seen"]["devices"]
    return (ONE + ONE * fresh(i["destinations"], domains) // i["count"]
            + ONE // 2 * fresh(i["devices"], devices) // i["count"])

def own(case, day, i):
    histogram = [0] * 24
    for d in case["days"]:
        if day - 60 <= d["day"] < day:
            for hour, n in d["hours"]: histogram[hour] += n
    total = sum(histogram)
    near = lambda h: sum(histogram[(h + k) % 24] for k in range(-2, 3))
    mine = [h for h in range(24) if i["hours"] >> h & 1]
    outside = [h for h in mine if total >= 8 and 100 * near(h) < 6 * total]
    return ONE + ONE // 4 * len(outside) // max(1, len(mine))

def q(case, day, i, m):
    past = [p for d in case["days"] if day - 60 <= d["day"] < day - 7
            for p in d["insights"] if p["indicator"] == i["indicator"] and p["count"]]
    usual, days = sum(map(magnitude, past)), sum(p["magnitude_milli"] > 0 for p in past)
    relative = 53_000 * m // (53_000 + 7 * min(usual, MOST))
    habit = max(ONE * 28 // (28 * (1 + days)), ONE // 8)
    value = (log2(1000 + relative) - log2(1000)) * habit >> 16
    return (value * novel(case, day, i) >> 16) * own(case, day, i) >> 16

def cap(s, c):
    return 0 if c <= 0 else s if 2 * s <= c else c - c * c // (4 * s)

def score(case):
    qs, sums, groups, boost = [], {}, {}, 1000
    for d in case["days"]:
        for i in d["insights"]:
            m, weight = magnitude(i), decay(d["day"], INDICATORS[i["indicator"]]["half_life_days"], case["hour"])
            if i["count"] and m and weight:
                qs.append(q(case, d["day"], i, m))
                sums[i["indicator"]] = sums.get(i["indicator"], 0) + (qs[-1] * weight >> 32)
    sums = {name: s for name, s in sums.items() if s}
    x = {name: cap(INDICATORS[name]["weight_milli"] * s >> 16, INDICATORS[name]["cap_milli"]) for name, s in sums.items()}
    for name in x: groups[INDICATORS[name]["category"]] = groups.get(INDICATORS[name]["category"], 0) + x[name]
    groups = {g: cap(s, CAPS[g]) for g, s in groups.items()}
    for factor in case["boosters_milli"]: boost = boost * factor // 1000
    boost, evidence = min(max(boost, 500), 2500), sum(groups.values())
    points = 100_000 * ((1 << 32) - exp2_neg(evidence * boost * ONE // 50_000_000)) >> 32
    order = sorted(sums, key=lambda name: INDICATORS[name]["code"])
    return {"q_q16": qs, "indicators": [[n, sums[n], x[n]] for n in order],
            "categories": [[g, groups[g]] for g in ORDER if groups.get(g)],
            "evidence_milli": evidence, "boost_milli": boost, "score_milli": points}

ORDER = ["access", "collection", "obfuscation", "exfiltration", "deletion", "security", "context"]
wrong = [c["name"] for c in V["cases"] if score(c) != c["expect"]]
for name in wrong: print("differs:", name)
print(f"{len(V['cases'])} cases, {len(wrong)} wrong")
sys.exit(bool(wrong))
