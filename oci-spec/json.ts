// JSON with 64-bit integers: what a double cannot hold exactly (seccomp
// arguments, RLIM_INFINITY) becomes a bigint, and goes out as a number again.

/** A document is not what its format says. `path` is where in the document, "process.rlimits[2].hard". */
export class FormatError extends Error {
  readonly path: string;
  constructor(path: string, problem: string) {
    super(path === '' ? problem : `${path} ${problem}`);
    this.name = 'FormatError';
    this.path = path;
  }
}

interface ReviverContext {
  readonly source?: string;
}

/** Throws FormatError. */
export function parseJson(text: string): unknown {
  const reviver = (_key: string, value: unknown, context?: ReviverContext): unknown => {
    if (typeof value !== 'number' || Number.isSafeInteger(value) || !Number.isInteger(value)) return value;
    // Node 21 and later give the literal; before that the nearest double has to do.
    return context?.source !== undefined && /^-?\d+$/.test(context.source) ? BigInt(context.source) : value;
  };
  try {
    // A reviver makes parsing three times slower; only documents with long numbers need it.
    return /[0-9]{16}/.test(text) ? (JSON.parse(text, reviver as never) as unknown) : (JSON.parse(text) as unknown);
  } catch (error) {
    throw new FormatError('', `is not JSON: ${(error as Error).message}`);
  }
}

/** Compact, with the characters escaped that Go's encoder escapes. */
export function stringifyJson(value: unknown): string {
  const rawJson = (JSON as unknown as { rawJSON?: (text: string) => unknown }).rawJSON;
  const text = JSON.stringify(value, (_key, item: unknown) => {
    if (typeof item !== 'bigint') return item;
    return rawJson !== undefined ? rawJson(item.toString()) : Number(item);
  });
  return text.replace(
    /[<>&\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** Reads fields of an untrusted document, one type at a time, and remembers where it is. */
export class JsonReader {
  readonly #value: unknown;
  readonly path: string;

  constructor(value: unknown, path = '') {
    this.#value = value;
    this.path = path;
  }

  get absent(): boolean {
    return this.#value === undefined || this.#value === null;
  }

  field(name: string): JsonReader {
    const object = this.#object();
    // Only own properties: "__proto__" is a key like any other in a document.
    const value = Object.prototype.hasOwnProperty.call(object, name) ? object[name] : undefined;
    return new JsonReader(value, this.path === '' ? name : `${this.path}.${name}`);
  }

  string(): string {
    if (typeof this.#value !== 'string') throw new FormatError(this.path, `must be a string, is ${this.#kind()}`);
    if (this.#value.includes('\0')) throw new FormatError(this.path, 'contains a null byte');
    return this.#value;
  }

  stringOr<T>(fallback: T): string | T {
    return this.absent ? fallback : this.string();
  }

  integer(): number {
    const value = this.wide();
    if (typeof value === 'bigint') throw new FormatError(this.path, `is too large: ${value}`);
    return value;
  }

  integerOr<T>(fallback: T): number | T {
    return this.absent ? fallback : this.integer();
  }

  /** An integer of up to 64 bits. */
  wide(): number | bigint {
    if (typeof this.#value === 'bigint') return this.#value;
    if (typeof this.#value !== 'number' || !Number.isInteger(this.#value)) {
      throw new FormatError(this.path, `must be an integer, is ${this.#kind()}`);
    }
    return this.#value;
  }

  wideOr<T>(fallback: T): number | bigint | T {
    return this.absent ? fallback : this.wide();
  }

  boolean(): boolean {
    if (typeof this.#value !== 'boolean') throw new FormatError(this.path, `must be true or false, is ${this.#kind()}`);
    return this.#value;
  }

  booleanOr<T>(fallback: T): boolean | T {
    return this.absent ? fallback : this.boolean();
  }

  list(): JsonReader[] {
    if (!Array.isArray(this.#value)) throw new FormatError(this.path, `must be a list, is ${this.#kind()}`);
    return this.#value.map((item, index) => new JsonReader(item, `${this.path}[${index}]`));
  }

  /** Absent and null are empty. */
  listOr<T>(read: (item: JsonReader) => T): T[] {
    return this.absent ? [] : this.list().map(read);
  }

  stringMap(): Record<string, string> {
    const result: Record<string, string> = {};
    if (this.absent) return result;
    for (const key of Object.keys(this.#object())) {
      Object.defineProperty(result, key, {
        value: this.field(key).string(),
        enumerable: true,
        configurable: true,
        writable: true,
      });
    }
    return result;
  }

  map<T>(read: (item: JsonReader) => T): Map<string, T> {
    const result = new Map<string, T>();
    if (this.absent) return result;
    for (const key of Object.keys(this.#object())) result.set(key, read(this.field(key)));
    return result;
  }

  raw(): unknown {
    return this.#value;
  }

  #object(): Record<string, unknown> {
    if (typeof this.#value !== 'object' || this.#value === null || Array.isArray(this.#value)) {
      throw new FormatError(this.path, `must be an object, is ${this.#kind()}`);
    }
    return this.#value as Record<string, unknown>;
  }

  #kind(): string {
    if (this.#value === undefined) return 'missing';
    if (this.#value === null) return 'null';
    return Array.isArray(this.#value) ? 'a list' : `a ${typeof this.#value}`;
  }
}
