"""The capitals of the tasks, out of Unicode CLDR: `python -m neuroglot_exporter.embedded.capitals_data`.

CLDR names an exemplar city for every time zone, in every language. So the states whose capital is such a city have a
translated capital; the others (about 100: the United States, China, Brazil ...) are left out, and so are dependencies.
Which zone belongs to which capital is the table below. Needs Babel, which carries CLDR.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from babel import Locale

from neuroglot.tasks.capital_prompts import LANGUAGES

_LOCALES = {language: "zh_Hans" if language == "zh" else language for language in LANGUAGES}

_ZONES = """
Africa: AO=Luanda BF=Ouagadougou BJ=Porto-Novo BW=Gaborone CD=Kinshasa CF=Bangui CG=Brazzaville DJ=Djibouti DZ=Algiers
  EG=Cairo ER=Asmara ET=Addis_Ababa GA=Libreville GH=Accra GM=Banjul GN=Conakry GQ=Malabo GW=Bissau KE=Nairobi
  LR=Monrovia LS=Maseru LY=Tripoli ML=Bamako MR=Nouakchott MZ=Maputo NA=Windhoek NE=Niamey RW=Kigali SD=Khartoum
  SL=Freetown SN=Dakar SO=Mogadishu SS=Juba ST=Sao_Tome TD=Ndjamena TG=Lome TN=Tunis UG=Kampala ZM=Lusaka ZW=Harare
America: BS=Nassau CL=Santiago CO=Bogota CU=Havana DO=Santo_Domingo HN=Tegucigalpa HT=Port-au-Prince MX=Mexico_City
  NI=Managua PE=Lima PY=Asuncion SR=Paramaribo TT=Port_of_Spain UY=Montevideo VE=Caracas
America/Argentina: AR=Buenos_Aires
Asia: AF=Kabul AM=Yerevan AZ=Baku BD=Dhaka BT=Thimphu CY=Nicosia GE=Tbilisi ID=Jakarta IL=Jerusalem IQ=Baghdad
  IR=Tehran JO=Amman JP=Tokyo KG=Bishkek KH=Phnom_Penh KP=Pyongyang KR=Seoul LA=Vientiane LB=Beirut MY=Kuala_Lumpur
  NP=Kathmandu OM=Muscat PH=Manila SA=Riyadh SG=Singapore SY=Damascus TH=Bangkok TJ=Dushanbe TL=Dili TM=Ashgabat
  UZ=Tashkent
Atlantic: IS=Reykjavik
Europe: AT=Vienna BA=Sarajevo BE=Brussels BG=Sofia BY=Minsk CZ=Prague DE=Berlin DK=Copenhagen EE=Tallinn ES=Madrid
  FI=Helsinki FR=Paris GB=London GR=Athens HR=Zagreb HU=Budapest IE=Dublin IT=Rome LI=Vaduz LT=Vilnius LU=Luxembourg
  LV=Riga MC=Monaco MD=Chisinau ME=Podgorica MK=Skopje NL=Amsterdam NO=Oslo PL=Warsaw PT=Lisbon RO=Bucharest
  RS=Belgrade RU=Moscow SE=Stockholm SI=Ljubljana SK=Bratislava UA=Kyiv
Indian: MG=Antananarivo
Pacific: MH=Majuro PG=Port_Moresby TV=Funafuti WS=Apia
"""
"""The capital's zone by state, grouped by the zone's area; an underscore stands for a space."""

_CLDR_ZONES = {
    "Africa/Asmara": "Africa/Asmera",
    "America/Argentina/Buenos_Aires": "America/Buenos_Aires",
    "Asia/Kathmandu": "Asia/Katmandu",
    "Europe/Kyiv": "Europe/Kiev",
}
"""Zones that CLDR keeps under their old name."""


def records() -> Iterator[dict[str, Any]]:
    """One record a state, in the order of the territory codes.

    A language for which CLDR has no exemplar city of its own uses the English name; without an English one, the name of
    the zone is the city's. `capital_is_fallback` lists these languages.
    """
    locales = {language: Locale.parse(locale) for language, locale in _LOCALES.items()}
    for territory, zone in sorted(_zones()):
        cities = {language: _city(locale, zone) for language, locale in locales.items()}
        english = cities["en"] or zone.rsplit("/", 1)[1].replace("_", " ")
        yield {
            "territory": territory,
            "zone": zone,
            "country": {language: locale.territories[territory] for language, locale in locales.items()},
            "capital": {language: city or english for language, city in cities.items()},
            "capital_is_fallback": [language for language, city in cities.items() if city is None],
        }


def _zones() -> Iterator[tuple[str, str]]:
    area = ""
    for word in _ZONES.split():
        if word.endswith(":"):
            area = word.removesuffix(":")
        else:
            territory, city = word.split("=")
            yield territory, f"{area}/{city}"


def _city(locale: Locale, zone: str) -> str | None:
    city: str | None = locale.time_zones.get(_CLDR_ZONES.get(zone, zone), {}).get("city")
    return city


@click.command()
def main() -> None:
    """Print the lines of `client/neuroglot/tasks/data/capitals.jsonl`."""
    for record in records():
        click.echo(json.dumps(record, ensure_ascii=False))


if __name__ == "__main__":
    main()
