// A container registry on this host, for images that managers have to pull: the
// reading half of the OCI distribution protocol over layout directories.
import { createReadStream, existsSync, readFileSync, statSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

interface Layout {
  readonly directory: string;
  /** The media types of what the index names; of everything else nobody asks by digest alone. */
  readonly manifests: readonly { readonly mediaType: string; readonly digest: string }[];
}

export class Registry {
  readonly #server: Server;
  readonly #layouts = new Map<string, Layout>();
  /** What was asked for, in order: "GET /v2/box/manifests/1". */
  readonly requests: string[] = [];

  private constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async open(): Promise<Registry> {
    const registry = new Registry();
    await new Promise<void>((resolve, reject) => {
      registry.#server.once('error', reject);
      registry.#server.listen(0, '127.0.0.1', resolve);
    });
    return registry;
  }

  /** Clients speak plain HTTP to a registry of this name without being told to. */
  get host(): string {
    return `localhost:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Serves the one image of a layout directory, and returns its name. */
  add(repository: string, tag: string, directory: string): string {
    const { manifests } = JSON.parse(readFileSync(join(directory, 'index.json'), 'utf8')) as Layout;
    this.#layouts.set(`${repository}:${tag}`, { directory, manifests });
    return `${this.host}/${repository}:${tag}`;
  }

  remove(repository: string, tag: string): void {
    this.#layouts.delete(`${repository}:${tag}`);
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { method = '', url = '' } = request;
    const { pathname } = new URL(url, 'http://localhost');
    this.requests.push(`${method} ${pathname}`);
    if (method !== 'GET' && method !== 'HEAD') return refuse(response, 405, 'UNSUPPORTED');
    if (pathname === '/v2/') return void response.end('{}');
    const [, repository, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs)\/([^/]+)$/.exec(pathname) ?? [];
    if (repository === undefined || kind === undefined || reference === undefined)
      return refuse(response, 404, 'NAME_UNKNOWN');
    for (const [name, { directory, manifests }] of this.#layouts) {
      const manifest = manifests.find(({ digest }) => reference === digest || name === `${repository}:${reference}`);
      const digest = kind === 'manifests' ? manifest?.digest : reference;
      if (digest === undefined || !name.startsWith(`${repository}:`)) continue;
      const file = join(directory, 'blobs', digest.replace(':', '/'));
      if (!existsSync(file)) continue;
      response.writeHead(200, {
        'content-type': kind === 'manifests' ? manifest!.mediaType : 'application/octet-stream',
        'content-length': statSync(file).size,
        'docker-content-digest': digest,
      });
      if (method === 'HEAD') return void response.end();
      return void createReadStream(file).pipe(response);
    }
    refuse(response, 404, kind === 'manifests' ? 'MANIFEST_UNKNOWN' : 'BLOB_UNKNOWN');
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve, reject) =>
      this.#server.close((error) => (error === undefined ? resolve() : reject(error))),
    );
  }
}

function refuse(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ errors: [{ code, message: code.toLowerCase().replace('_', ' ') }] }));
}
