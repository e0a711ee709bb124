// A client in another language that has the .proto files and nothing else of ours.
//
//   node foreign_client.js ADDRESS TOKEN PROTO_FOLDER NODE_MODULES
//
// Prints one JSON object with what it saw and did.
"use strict";

const path = require("path");

const [address, token, protoFolder, nodeModules] = process.argv.slice(2);
const grpc = require(path.join(nodeModules, "@grpc/grpc-js"));
const loader = require(path.join(nodeModules, "@grpc/proto-loader"));

const files = ["model_service", "parameter_service", "hook_service", "state_dict_service"];
const definition = loader.loadSync(
  files.map((name) => `modscope/v1/${name}.proto`),
  { includeDirs: [protoFolder], keepCase: true, longs: Number, enums: String, defaults: true }
);
const { v1 } = grpc.loadPackageDefinition(definition).modscope;
const credentials = grpc.credentials.createInsecure();
const models = new v1.ModelService(address, credentials);
const parameters = new v1.ParameterService(address, credentials);
const hooks = new v1.HookService(address, credentials);
const states = new v1.StateDictService(address, credentials);

function metadata(bearer) {
  const headers = new grpc.Metadata();
  if (bearer) headers.set("authorization", `Bearer ${bearer}`);
  return headers;
}

function deadline() {
  return { deadline: Date.now() + 30000 };
}

function unary(client, method, request, bearer = token) {
  return new Promise((resolve, reject) =>
    client[method](request, metadata(bearer), deadline(), (error, reply) => (error ? reject(error) : resolve(reply)))
  );
}

async function all(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}

function streaming(client, method, request) {
  return client[method](request, metadata(token), deadline());
}

function upload(client, method, messages) {
  return new Promise((resolve, reject) => {
    const call = client[method](metadata(token), deadline(), (error, reply) =>
      error ? reject(error) : resolve(reply)
    );
    messages.forEach((message) => call.write(message));
    call.end();
  });
}

async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    const details = error.metadata.get("grpc-status-details-bin")[0];
    return { status: grpc.status[error.code], message: error.details, details: String(details) };
  }
}

async function watch() {
  const stream = streaming(hooks, "Watch", { glob: "first", payload: "PAYLOAD_NONE" });
  let created = null;
  let reason = "";
  let events = [];
  let stopped = false;
  for await (const message of stream) {
    if (message.created) created = message.created;
    events = events.concat(message.events.map((event) => [event.seq, event.path, event.hook]));
    if (events.length >= 3 && !stopped) {
      stopped = true;
      await unary(hooks, "StopWatch", { watch_id: created.watch_id });
    }
    if (message.ended) reason = message.ended.reason;
  }
  return { events, reason };
}

async function runForward() {
  const call = models.Forward(metadata(token), deadline());
  const bytes = Buffer.alloc(2 * 4 * 4);
  call.write({ args: [{ tensor: 0 }], tensors: 1 });
  call.write({ tensor: { key: "0", spec: spec([2, 4], bytes) }, data: bytes });
  call.end();
  const messages = await all(call);
  return Buffer.concat(messages.map((message) => message.data)).toString("hex");
}

function spec(shape, bytes) {
  return { dtype: "DTYPE_FLOAT32", dtype_name: "float32", shape, byte_size: bytes.length };
}

async function main() {
  const seen = {};
  seen.models = (await unary(models, "ListModels", {})).models.map((model) => model.name);
  seen.modules = (await all(streaming(models, "ListModules", {}))).flatMap((message) =>
    message.modules.map((module) => [module.path, module.type])
  );
  seen.parameters = (await all(streaming(parameters, "ListParameters", { stats: true }))).flatMap((message) =>
    message.parameters.map((parameter) => [parameter.path, parameter.shape, parameter.stats.norm])
  );
  seen.weight = (await unary(parameters, "ReadTensor", { path: "first.weight" })).data.toString("hex");
  const stateDict = await all(streaming(states, "Download", {}));
  seen.keys = stateDict[0].entries.map((entry) => entry.key);
  seen.stateDict = Buffer.concat(stateDict.map((message) => message.data)).toString("hex");
  seen.forward = await runForward();
  seen.watch = await watch();

  const bytes = Buffer.from(new Float32Array([1.5, -2.5]).buffer);
  const written = await upload(parameters, "WriteTensor", [
    { path: "last.bias", spec: spec([2], bytes) },
    { data: bytes.subarray(0, 4) },
    { data: bytes.subarray(4) },
  ]);
  seen.written = written.operation.paths;
  seen.frozen = (await unary(parameters, "Freeze", { glob: "first.*" })).operation.paths;

  seen.unknownPath = await failure(unary(parameters, "ReadTensor", { path: "first.weigth" }));
  seen.wrongToken = await failure(unary(models, "ListModels", {}, "wrong"));
  seen.noToken = await failure(unary(models, "ListModels", {}, ""));
  console.log(JSON.stringify(seen));
}

main()
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(() => [models, parameters, hooks, states].forEach((client) => client.close()));
