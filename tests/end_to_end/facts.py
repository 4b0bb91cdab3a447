"""Short cloze prompts with answers of one word: the same facts in English, French, Spanish and German.

Each prompt tells two other facts of its kind first: without them the small model that is asked does not even try.
"""

from __future__ import annotations

import neuroglot as ng

LANGUAGES = ("en", "fr", "es", "de")

_FORMS = {
    "capital": (
        "The capital of Italy is Rome. The capital of Japan is Tokyo. The capital of {} is",
        "La capitale de l'Italie est Rome. La capitale du Japon est Tokyo. La capitale {} est",
        "La capital de Italia es Roma. La capital de Japón es Tokio. La capital de {} es",
        "Die Hauptstadt von Italien ist Rom. Die Hauptstadt von Japan ist Tokio. Die Hauptstadt von {} ist",
    ),
    "opposite": (
        "The opposite of high is low. The opposite of rich is poor. The opposite of {} is",
        "Le contraire de haut est bas. Le contraire de riche est pauvre. Le contraire de {} est",
        "Lo contrario de alto es bajo. Lo contrario de rico es pobre. Lo contrario de {} es",
        "Das Gegenteil von hoch ist niedrig. Das Gegenteil von reich ist arm. Das Gegenteil von {} ist",
    ),
    "weekday": (
        "Monday comes before Tuesday. Friday comes before Saturday. {} comes before",
        "Lundi vient avant mardi. Vendredi vient avant samedi. {} vient avant",
        "El lunes viene antes del martes. El viernes viene antes del sábado. El {} viene antes del",
        "Montag kommt vor Dienstag. Freitag kommt vor Samstag. {} kommt vor",
    ),
}

_FACTS = {
    "capital": """
        France/Paris | de la France/Paris | Francia/París | Frankreich/Paris
        Germany/Berlin | de l'Allemagne/Berlin | Alemania/Berlín | Deutschland/Berlin
        Spain/Madrid | de l'Espagne/Madrid | España/Madrid | Spanien/Madrid
        Portugal/Lisbon | du Portugal/Lisbonne | Portugal/Lisboa | Portugal/Lissabon
        Austria/Vienna | de l'Autriche/Vienne | Austria/Viena | Österreich/Wien
        Poland/Warsaw | de la Pologne/Varsovie | Polonia/Varsovia | Polen/Warschau
        Russia/Moscow | de la Russie/Moscou | Rusia/Moscú | Russland/Moskau
        Greece/Athens | de la Grèce/Athènes | Grecia/Atenas | Griechenland/Athen
        England/London | de l'Angleterre/Londres | Inglaterra/Londres | England/London
        Ireland/Dublin | de l'Irlande/Dublin | Irlanda/Dublín | Irland/Dublin
        Norway/Oslo | de la Norvège/Oslo | Noruega/Oslo | Norwegen/Oslo
        China/Beijing | de la Chine/Pékin | China/Pekín | China/Peking
        Belgium/Brussels | de la Belgique/Bruxelles | Bélgica/Bruselas | Belgien/Brüssel
        Sweden/Stockholm | de la Suède/Stockholm | Suecia/Estocolmo | Schweden/Stockholm
    """,
    "opposite": """
        hot/cold | chaud/froid | caliente/frío | heiß/kalt
        big/small | grand/petit | grande/pequeño | groß/klein
        good/bad | bon/mauvais | bueno/malo | gut/schlecht
        white/black | blanc/noir | blanco/negro | weiß/schwarz
        long/short | long/court | largo/corto | lang/kurz
        old/young | vieux/jeune | viejo/joven | alt/jung
        fast/slow | rapide/lent | rápido/lento | schnell/langsam
    """,
    "weekday": """
        Tuesday/Wednesday | Mardi/mercredi | martes/miércoles | Dienstag/Mittwoch
        Wednesday/Thursday | Mercredi/jeudi | miércoles/jueves | Mittwoch/Donnerstag
        Saturday/Sunday | Samedi/dimanche | sábado/domingo | Samstag/Sonntag
    """,
}


def fact_groups() -> list[ng.Group]:
    """24 groups, one a fact, with ids like `capital/Spain` and a row in each of `LANGUAGES`."""
    return [
        _group(kind, [cell.strip().split("/") for cell in line.split("|")])
        for kind, lines in _FACTS.items()
        for line in lines.strip().splitlines()
    ]


def _group(kind: str, cells: list[list[str]]) -> ng.Group:
    prompts = {
        language: form.format(asked) for language, form, (asked, _) in zip(LANGUAGES, _FORMS[kind], cells, strict=True)
    }
    answers = {language: answer for language, (_, answer) in zip(LANGUAGES, cells, strict=True)}
    return ng.Group(prompts, answers=answers, id=f"{kind}/{cells[0][0]}")
