// A client of the Container Runtime Interface (runtime.v1), as the kubelet is
// one: the calls that a checkpoint needs, with the fields that it needs. gRPC
// without streams is one HTTP/2 request: five bytes, then the message.
import { connect as connectHttp2, constants, type ClientHttp2Session } from 'node:http2';
import { connect as connectSocket } from 'node:net';
import protobuf from 'protobufjs';

// Numbers and names are the interface's; everything else of it is left out.
const proto = `
  syntax = "proto3";
  package runtime.v1;
  message PodSandboxMetadata { string name = 1; string uid = 2; string namespace = 3; uint32 attempt = 4; }
  message NamespaceOption { int32 network = 1; int32 pid = 2; int32 ipc = 3; }
  message LinuxSandboxSecurityContext { NamespaceOption namespace_options = 1; }
  message LinuxPodSandboxConfig { string cgroup_parent = 1; LinuxSandboxSecurityContext security_context = 2; }
  message PodSandboxConfig {
    PodSandboxMetadata metadata = 1; string hostname = 2; string log_directory = 3; LinuxPodSandboxConfig linux = 8;
  }
  message RunPodSandboxRequest { PodSandboxConfig config = 1; string runtime_handler = 2; }
  message RunPodSandboxResponse { string pod_sandbox_id = 1; }
  message PodSandboxId { string pod_sandbox_id = 1; }
  message ContainerMetadata { string name = 1; uint32 attempt = 2; }
  message ImageSpec { string image = 1; }
  message PullImageRequest { ImageSpec image = 1; }
  message PullImageResponse { string image_ref = 1; }
  message RemoveImageRequest { ImageSpec image = 1; }
  message LinuxContainerSecurityContext { NamespaceOption namespace_options = 3; }
  message LinuxContainerConfig { LinuxContainerSecurityContext security_context = 2; }
  message Mount { string container_path = 1; string host_path = 2; }
  message ContainerConfig {
    ContainerMetadata metadata = 1; ImageSpec image = 2; repeated string command = 3; repeated string args = 4;
    repeated Mount mounts = 7; string log_path = 11; LinuxContainerConfig linux = 15;
  }
  message CreateContainerRequest { string pod_sandbox_id = 1; ContainerConfig config = 2; PodSandboxConfig sandbox_config = 3; }
  message ContainerId { string container_id = 1; }
  message StopContainerRequest { string container_id = 1; int64 timeout = 2; }
  message ContainerStatus { string id = 1; int32 state = 3; map<string, string> annotations = 13; }
  message ContainerStatusResponse { ContainerStatus status = 1; }
  message ExecSyncRequest { string container_id = 1; repeated string cmd = 2; int64 timeout = 3; }
  message ExecSyncResponse { bytes stdout = 1; bytes stderr = 2; int32 exit_code = 3; }
  message CheckpointContainerRequest { string container_id = 1; string location = 2; int64 timeout = 3; }
  message Empty {}
`;

/** Request and response of each call. */
const calls = {
  RunPodSandbox: ['RunPodSandboxRequest', 'RunPodSandboxResponse'],
  StopPodSandbox: ['PodSandboxId', 'Empty'],
  RemovePodSandbox: ['PodSandboxId', 'Empty'],
  CreateContainer: ['CreateContainerRequest', 'ContainerId'],
  StartContainer: ['ContainerId', 'Empty'],
  StopContainer: ['StopContainerRequest', 'Empty'],
  RemoveContainer: ['ContainerId', 'Empty'],
  ContainerStatus: ['ContainerId', 'ContainerStatusResponse'],
  ExecSync: ['ExecSyncRequest', 'ExecSyncResponse'],
  CheckpointContainer: ['CheckpointContainerRequest', 'Empty'],
  PullImage: ['PullImageRequest', 'PullImageResponse'],
  RemoveImage: ['RemoveImageRequest', 'Empty'],
} as const;

/** Values of NamespaceOption. */
export const namespaceMode = { pod: 0, container: 1, node: 2 } as const;
/** Values of ContainerStatus.state. */
export const containerState = { created: 0, running: 1, exited: 2 } as const;

const types = protobuf.parse(proto, { keepCase: true }).root.lookup('runtime.v1') as protobuf.Namespace;

const timeoutMs = 60_000;

export class Cri {
  readonly #session: ClientHttp2Session;

  constructor(socket: string) {
    this.#session = connectHttp2('http://localhost', { createConnection: () => connectSocket(socket) });
    // Every request that fails by it says so itself.
    this.#session.on('error', () => undefined);
  }

  /** Rejects with what the other side says. */
  async call(name: keyof typeof calls, request: Readonly<Record<string, unknown>>): Promise<Record<string, unknown>> {
    const [requestType, responseType] = calls[name].map((type) => types.lookupType(type));
    const message = requestType!.encode(requestType!.fromObject(request)).finish();
    const service = name.endsWith('Image') ? 'ImageService' : 'RuntimeService';
    const answer = await this.#post(`/runtime.v1.${service}/${name}`, message);
    return responseType!.toObject(responseType!.decode(answer), { defaults: true });
  }

  async #post(path: string, message: Uint8Array): Promise<Uint8Array> {
    return await new Promise((resolve, reject) => {
      const stream = this.#session.request({
        [constants.HTTP2_HEADER_METHOD]: 'POST',
        [constants.HTTP2_HEADER_PATH]: path,
        'content-type': 'application/grpc',
        te: 'trailers',
      });
      const parts: Buffer[] = [];
      // A refusal without an answer has its status in the headers, everything else in the trailers.
      let status: Record<string, unknown> = {};
      stream.on('response', (headers) => (status = headers));
      stream.on('trailers', (trailers) => (status = { ...status, ...trailers }));
      stream.on('data', (part: Buffer) => parts.push(part));
      stream.on('error', reject);
      stream.setTimeout(timeoutMs, () => stream.destroy(new Error(`${path} has not answered within ${timeoutMs} ms`)));
      stream.on('close', () => {
        const body = Buffer.concat(parts);
        if (status['grpc-status'] !== '0') {
          const said = decodeURIComponent(String(status['grpc-message'] ?? ''));
          reject(new Error(said === '' ? `${path} ended with status ${String(status['grpc-status'])}` : said));
        } else if (body.length < 5 || body.length !== 5 + body.readUInt32BE(1) || body[0] !== 0) {
          reject(new Error(`${path} answered with ${body.length} bytes that are no plain message`));
        } else resolve(body.subarray(5));
      });
      const head = Buffer.alloc(5);
      head.writeUInt32BE(message.length, 1);
      stream.end(Buffer.concat([head, message]));
    });
  }

  close(): void {
    this.#session.destroy();
  }
}
