"""How questions are put: one small grammar for each kind of question.

`<thing>` is a noun phrase for what is wanted, such as "the price of {row}"; the rules in `_AROUND`
make questions, requests and bare phrases of it. `<clause>` is for requests alone ("what {row}
cost"), `<more>` for questions that have no such noun phrase; `<is>` and `<whether>` are for those
that are answered by yes or no.
"""

from __future__ import annotations

from functools import cache

from cogitate.evals.grammar import Grammar

_AROUND = {
    "lead": "[|quick question: |tell me: |please tell me: |so, |now, |one question: |hello! ]",
    "in": "[looking at the picture,|in the picture,|from the picture,|going by the picture,]",
    "tail": "[| here| in the picture|, please| in this picture]",
    "polite": "[|please |kindly |now |now please |then |go on and ]",
    "show": (
        "[tell me|give me|find|read|look up|name|state|say|report|write down|read out|let me know]"
    ),
    "want": "[I want|I would like|I'd like|I need|we need|we want|I wish]",
    "may": "[can you|could you|would you|will you]",
    "what": (
        "[<lead>[what is|what's] <thing><tail>?|<in> [what is|what's] <thing>?"
        "|<polite><show> <any><tail>.|<want> to know <any><tail>."
        "|<may> [please |]<show> <any>?|<thing>[?|, please.]]"
    ),
    "asked": "[<lead><more><tail>?|<in> <more>?]",
    "yes": (
        "[<lead><is><tail>?|<in> <is>?|<polite>[tell me|check|say|find out|see|let me know] "
        "[if|whether] <whether>.|<want> to know [if|whether] <whether>."
        "|<may> [please |][tell me|check|see|say] [if|whether] <whether>?]"
    ),
}
# Of two pictures nobody says "in this picture".
_TWO = {
    "tail": "[|, please]",
    "in": "[looking at both,|comparing the two,|of the two pictures,|going by both pictures,]",
}
_CARD = "[card|tile|sign]"
_SAYS = "[that says|with the word|labelled|that reads|on which you see|with the label]"
_COST = "[cost|price]"

# Rules by kind: `thing` and `more`, or `is` and `whether`.
_RULES: dict[str, dict[str, str]] = {
    "labels.word": {
        "thing": (
            f"the [word|text|label|writing] [on|written on|printed on] the {{colour}} {_CARD}"
        ),
        "more": (
            f"[what does the {{colour}} {_CARD} say|what [is|stands] written on the {{colour}} "
            f"{_CARD}|which word [is on|stands on|can be read on] the {{colour}} {_CARD}"
            f"|which word does the {{colour}} {_CARD} [show|carry|have]]"
        ),
    },
    "labels.colour": {
        "thing": f"the colo[u|]r of the {_CARD} {_SAYS} {{word}}",
        "more": (
            f"[which {_CARD} [says|carries|shows|reads] {{word}}|what colo[u|]r is the {_CARD} "
            f"{_SAYS} {{word}}|on which {_CARD} [is|stands] {{word}}|where [is|stands] {{word}}]"
        ),
    },
    "labels.words": {
        "thing": (
            "[all |][the words|the labels|the texts] on [all |]the {colour} [cards|tiles|signs]"
        ),
        "more": (
            "[which words [are on|stand on|can be read on] the {colour} [cards|tiles|signs]"
            "|what do the {colour} [cards|tiles|signs] say|what is written on the {colour} "
            "[cards|tiles|signs]]"
        ),
    },
    "labels.has": {
        "is": (
            f"[is there a {_CARD} {_SAYS} {{word}}|do you see a {_CARD} {_SAYS} {{word}}"
            f"|does [a|any|one] {_CARD} say {{word}}|is {{word}} on [a|any|one of the] "
            "[card|cards]]"
        ),
        "whether": (
            f"[there is a {_CARD} {_SAYS} {{word}}|you see a {_CARD} {_SAYS} {{word}}"
            f"|[a|any|one] {_CARD} says {{word}}|{{word}} is on a {_CARD}]"
        ),
    },
    "receipt.price": {
        "thing": f"the {_COST} of [|the ]{{row}}",
        "clause": "[what the {row} cost|what was paid for {row}|how much {row} cost]",
        "more": "[how much did [|the ]{row} cost|what did [|the ]{row} cost]",
    },
    "receipt.quantity": {
        "thing": "the [number|quantity|count] of [|the ]{row} [|that were bought|on the receipt]",
        "more": "how many {row} [were bought|were sold|are on the receipt|did they buy]",
    },
    "receipt.sum": {
        "thing": (
            f"[the {_COST} of {{row}} and {{other}} together|the sum of the {_COST}s of {{row}} "
            "and {other}]"
        ),
        "clause": "[what|how much] {row} and {other} cost [together|in all]",
        "more": "how much did [|the ]{row} and [|the ]{other} cost [together|in all]",
    },
    "receipt.difference": {
        "thing": (f"the difference [in {_COST} |]between [|the ]{{row}} and {{other}}"),
        "clause": "[how much more {row} cost than {other}|how much less {other} cost than {row}]",
        "more": (
            "[how much more did [|the ]{row} cost than [|the ]{other}|how much cheaper [was|were] "
            "[|the ]{other} than [|the ]{row}]"
        ),
    },
    "receipt.most": {
        "thing": (
            "[the [most expensive|dearest|priciest|costliest] [item|line|thing]|the item with the "
            "[highest|largest|biggest] price]"
        ),
        "more": "[which item|what] [costs the most|has the highest price|is the most expensive]",
    },
    "receipt.least": {
        "thing": (
            "[the [least expensive|cheapest] [item|line|thing]|the item with the "
            "[lowest|smallest] price]"
        ),
        "more": "[which item|what] [costs the least|has the lowest price|is the cheapest]",
    },
    "receipt.who": {
        "thing": "the [item|line|thing] [that costs|for|with the price|at] {value}",
        "more": "[which item|what] [costs|is|has the price] {value}",
    },
    "receipt.total": {
        "thing": "[the [total|sum] [on|of] the receipt|the total [shown|printed]]",
        "clause": "what it all cost",
        "more": "[what total does the receipt [show|print|say]|how much is the whole receipt]",
    },
    "receipt.check": {
        "is": (
            "[is the [total|sum] [right|correct|added up right]|does the [total|sum] [add up|fit"
            "|match the prices]|was it added up [right|correctly]]"
        ),
        "whether": (
            "[the [total|sum] is [right|correct|added up right]|the [total|sum] [adds up|fits"
            "|matches the prices]|it was added up [right|correctly]]"
        ),
    },
    "timetable.departs": {
        "thing": ("[the [departure time|departure|time] of the [train|service] to {row}]"),
        "more": (
            "[when|at what time] does the [train|service] to {row} [leave|depart|go|start|set off]"
        ),
    },
    "timetable.track": {
        "thing": "the [track|platform] [of|for] the [train|service] to {row}",
        "more": (
            "[from which|on which|which|what] [track|platform] does the train to {row} "
            "[leave from|go from|use]"
        ),
    },
    "timetable.train": {
        "thing": "the [number|name|code] of the [train|service] to {row}",
        "more": "[which|what] [train|service] [goes to|runs to|is for|takes me to] {row}",
    },
    "timetable.first": {
        "thing": "[the [place|town|city] the [first|earliest] train goes to|the destination of the "
        "[first|earliest] train]",
        "more": "[where|to which town|to which city] does the [first|earliest] train [go|run]",
    },
    "timetable.last": {
        "thing": "[the [place|town|city] the [last|latest] train goes to|the destination of the "
        "[last|latest] train]",
        "more": "[where|to which town|to which city] does the [last|latest] train [go|run]",
    },
    "timetable.who": {
        "thing": "[the destination of the [{value}|train at {value}]|the [place|town|city] the "
        "{value} train goes to]",
        "more": "[where|to which town] does the [{value} train|train at {value}] [go|run]",
    },
    "timetable.count": {
        "thing": "the number of [trains|departures|rows]",
        "clause": "how many [trains|departures] there are",
        "more": "how many [trains|departures|destinations] [are there|are listed|do you see]",
    },
    "lab.result": {
        "thing": "[the [result|value|level|reading] [of|for] {row}|the {row} [result|value|level]]",
        "more": (
            "[what does the report say [for|about] {row}|how high is {row}|which "
            "[result|value] does {row} have]"
        ),
    },
    "lab.unit": {
        "thing": "the unit [of|for] {row}",
        "more": "in [which|what] unit is {row} [given|measured|reported]",
    },
    "lab.sample": {
        "thing": "the sample [of|for|used for] {row}",
        "more": "in [which|what] sample was {row} [measured|tested|found]",
    },
    "lab.count": {
        "thing": "the number of [tests|results|rows]",
        "clause": "how many [tests|results] there are",
        "more": "how many [tests|results|values] [are there|are listed|does the report have]",
    },
    "chart.value": {
        "thing": "[the [value|height|number] [of|for] {label}|the {label} [value|bar]]",
        "more": (
            "[how [high|tall|large|long] is the bar [of|for] {label}|what value does {label} have"
            "|how [many|much] [does|did] {label} have|what does the {label} bar show]"
        ),
    },
    "chart.most": {
        "thing": "[the [highest|largest|biggest|longest] bar|the label of the [highest|longest] bar"
        "|the one with the [highest|largest] value]",
        "more": "[which|which bar|which one] [is the [highest|longest|largest]|has the most]",
    },
    "chart.least": {
        "thing": "[the [lowest|smallest|shortest] bar|the label of the [lowest|shortest] bar"
        "|the one with the [lowest|smallest] value]",
        "more": "[which|which bar|which one] [is the [lowest|shortest|smallest]|has the least]",
    },
    "chart.sum": {
        "thing": (
            "[the [sum|total] of {label} and {other}|{label} and {other} [together|added up]"
            "|{label} plus {other}]"
        ),
        "more": (
            "[how [many|much] [are|is|do] {label} and {other} [together|in all]"
            "|what do {label} and {other} [add up to|come to]]"
        ),
    },
    "chart.above": {
        "thing": "the number of bars [above|over|higher than|larger than|greater than] {limit}",
        "more": (
            "how many [bars|values] are [above|over|higher than|larger than|more than|greater than]"
            " {limit}"
        ),
    },
    "compare.more": _TWO
    | {
        "thing": "the picture [with|that has|showing] [more|the most] {colour} [cards|tiles]",
        "more": (
            "[which [picture|image|board] [has|shows] [more|the most] {colour} [cards|tiles]"
            "|[in|on] which [picture|image|board] are there more {colour} [cards|tiles]]"
        ),
    },
    "compare.total": _TWO
    | {
        "thing": "the receipt [with|that has|showing] the [larger|higher|bigger] [total|sum]",
        "more": (
            "[which receipt|which of the two receipts|which one of the receipts] has the "
            "[larger|higher|bigger] [total|sum|amount]"
        ),
    },
    "compare.same": _TWO
    | {
        "is": (
            "[do the {colour} [cards|tiles|signs] [in both pictures |][say the same|have the same "
            "word]|is the word on the {colour} [card|tile] the same in both pictures]"
        ),
        "whether": (
            "[the {colour} [cards|tiles|signs] [in both pictures |][say the same|have the same "
            "word]|the word on the {colour} [card|tile] is the same in both pictures]"
        ),
    },
    "compare.rose": _TWO
    | {
        "is": (
            "[[did {row} go up|has {row} risen|has {row} gone up] [from the first to the second "
            "report|since the first report]|is {row} higher in the second report]"
        ),
        "whether": (
            "[{row} [went up|rose|has risen] [from the first to the second report"
            "|since the first report]|{row} is higher in the second report]"
        ),
    },
    "chain.price": {
        "thing": f"the {_COST} of {{count}} of what the {{colour}} {_CARD} [says|names|shows]",
        "clause": (
            f"what {{count}} of the [thing|item] on the {{colour}} {_CARD} [cost|would cost]"
        ),
        "more": (
            f"how much do {{count}} of what [is on|stands on] the {{colour}} {_CARD} [cost|come to]"
        ),
    },
    "chain.fare": {
        "thing": ("the fare [of|for] {count} people [on|by|in] the [{value}|{value} train]"),
        "clause": "what {count} people pay [on|by|for] the {value} train",
        "more": (
            "how much [do|must] {count} [people|persons|travellers] pay [on|by|for] the "
            "{value} train"
        ),
    },
    "chain.range": {
        "thing": "the verdict of the [reference range|range] on {row}",
        "clause": "[what the [reference range|range] says about {row}|whether {row} is normal]",
        "more": (
            "[is {row} [low, normal or high|normal|within the range|in the normal range"
            "|within its reference range]|how is {row} compared with the range]"
        ),
    },
    "chain.listed": {
        "is": (
            "[[was|were] [|the ]{row} charged [as listed|as the price list says|correctly]"
            "|does the price of {row} [match|agree with|fit] the price list]"
        ),
        "whether": (
            "[[|the ]{row} [was|were] charged [as listed|as the price list says|correctly]"
            "|the price of {row} [matches|agrees with|fits] the price list]"
        ),
    },
    "chain.over": {
        "thing": ("the difference between {label} and its [target|goal]"),
        "clause": "by how much {label} [misses|is off] its [target|goal]",
        "more": "how far is {label} from its [target|goal]",
    },
}
KINDS = tuple(_RULES)


@cache
def grammar(kind: str) -> Grammar:
    """Returns the grammar of a kind of question. Raises KeyError for a kind that is not there."""
    rules = _RULES[kind]
    start = "<yes>" if "is" in rules else "[<what>|<asked>]"
    wanted = "[<thing>|<clause>]" if "clause" in rules else "<thing>"
    return Grammar(start, _AROUND | {"any": wanted} | rules)
