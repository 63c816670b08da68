// Annotations "org.systemd.property.NAME": properties of a container's scope,
// whose values are written as GVariant texts. What runc and crun know of it.
import type { DbusValue, DbusVariant } from './dbus-message.js';
import { FormatError } from './json.js';

export type UnitProperty = readonly [name: string, value: DbusVariant];

const kPrefix = 'org.systemd.property.';

const typesByKeyword: Readonly<Record<string, string>> = {
  boolean: 'b',
  byte: 'y',
  int16: 'n',
  uint16: 'q',
  int32: 'i',
  uint32: 'u',
  int64: 'x',
  uint64: 't',
  double: 'd',
  string: 's',
  objectpath: 'o',
  signature: 'g',
};

const bitsOfType: Readonly<Record<string, readonly [bits: number, signed: boolean]>> = {
  y: [8, false],
  n: [16, true],
  q: [16, false],
  i: [32, true],
  u: [32, false],
  x: [64, true],
  t: [64, false],
};

/** Throws FormatError. */
export function systemdAnnotations(annotations: Readonly<Record<string, string>>): UnitProperty[] {
  return Object.entries(annotations)
    .filter(([key]) => key.startsWith(kPrefix))
    .map(([key, text]) => {
      const name = key.slice(kPrefix.length);
      if (!/^[A-Za-z]{3,}$/.test(name)) throw new FormatError(`annotations["${key}"]`, 'names no property of a unit');
      const value = new VariantText(text, `annotations["${key}"]`).whole();
      return /[a-z]Sec$/.test(name) ? inMicroseconds(name, value, key) : [name, value];
    });
}

/** "TimeoutStopSec" is what unit files have, "TimeoutStopUSec" the property. */
function inMicroseconds(name: string, { signature, value }: DbusVariant, key: string): UnitProperty {
  const seconds = signature in bitsOfType || signature === 'd' ? Number(value) : -1;
  if (!(seconds >= 0)) throw new FormatError(`annotations["${key}"]`, 'is no number of seconds');
  const microseconds = BigInt(Math.round(seconds * 1_000_000));
  return [name.replace(/Sec$/, 'USec'), { signature: 't', value: microseconds }];
}

/** Numbers, strings, booleans, and arrays of them. */
class VariantText {
  #rest: string;
  readonly #where: string;

  constructor(text: string, where: string) {
    this.#rest = text;
    this.#where = where;
  }

  whole(): DbusVariant {
    const value = this.#value(undefined);
    if (this.#rest.trim() !== '') throw this.#malformed();
    return value;
  }

  /** A type that is `wanted` does not have to be written. */
  #value(wanted: string | undefined): DbusVariant {
    const type = this.#take(/^\s*@([a-z]+)\s+/)?.[1];
    if (type !== undefined) return this.#value(type);
    const keyword = this.#take(/^\s*([a-z]+[0-9]*)\s+(?=\S)/)?.[1];
    if (keyword !== undefined) {
      const named = typesByKeyword[keyword];
      if (named === undefined) throw this.#malformed();
      return this.#value(named);
    }
    if (this.#take(/^\s*\[/) !== undefined) return this.#array(wanted?.startsWith('a') === true ? wanted : undefined);
    const text = this.#take(/^\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")/);
    if (text !== undefined) {
      const string = (text[1] ?? text[2] ?? '').replace(/\\(.)/g, '$1');
      return this.#typed(wanted ?? 's', ['s', 'o', 'g'], string);
    }
    const word = this.#take(/^\s*([^\s,\]]+)/)?.[1] ?? '';
    if (word === 'true' || word === 'false') return this.#typed(wanted ?? 'b', ['b'], word === 'true');
    if (wanted === 'd' || (wanted === undefined && /^[-+]?[0-9]*\.[0-9]+$/.test(word)))
      return this.#typed('d', ['d'], Number(word));
    if (!/^[-+]?(0x[0-9a-fA-F]+|[0-9]+)$/.test(word)) throw this.#malformed();
    return this.#integer(wanted ?? 'i', word);
  }

  #integer(signature: string, word: string): DbusVariant {
    const [bits, signed] = bitsOfType[signature] ?? [0, false];
    const size = BigInt(word.replace(/^[-+]/, ''));
    const number = word.startsWith('-') ? -size : size;
    const fits = signed ? BigInt.asIntN(bits, number) === number : BigInt.asUintN(bits, number) === number;
    if (bits === 0 || !fits) throw this.#malformed();
    return { signature, value: bits === 64 ? number : Number(number) };
  }

  #array(wanted: string | undefined): DbusVariant {
    const values: DbusValue[] = [];
    let element = wanted?.slice(1);
    while (this.#take(/^\s*\]/) === undefined) {
      if (values.length > 0 && this.#take(/^\s*,/) === undefined) throw this.#malformed();
      const { signature, value } = this.#value(element);
      if (element !== undefined && element !== signature) throw this.#malformed();
      element = signature;
      values.push(value);
    }
    if (element === undefined) throw this.#malformed();
    return { signature: `a${element}`, value: values };
  }

  #typed(signature: string, allowed: readonly string[], value: string | boolean | number): DbusVariant {
    if (!allowed.includes(signature) || Number.isNaN(value)) throw this.#malformed();
    return { signature, value };
  }

  #take(pattern: RegExp): RegExpExecArray | undefined {
    const found = pattern.exec(this.#rest);
    if (found === null) return undefined;
    this.#rest = this.#rest.slice(found[0].length);
    return found;
  }

  #malformed(): FormatError {
    return new FormatError(this.#where, 'is no value of a type that a unit has (true, "text", uint64 5, [...])');
  }
}
