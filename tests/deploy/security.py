"""What a security review asks of every pod and every network policy."""

from collections import Counter

from render import as_key, containers, matches, name_of, workloads

ROLES = ("encoder", "decoder", "index", "coordinator")
# From -> to, on the gRPC port. The design has no other calls.
CALLS = {
    ("client", "encoder"), ("client", "decoder"), ("client", "index"), ("client", "coordinator"),
    ("decoder", "index"), ("decoder", "encoder"), ("decoder", "coordinator"),
    ("encoder", "index"), ("encoder", "coordinator"),
}
VOLUMES = {"emptyDir", "secret", "persistentVolumeClaim"}
GRACE = 5 + 25


def pods(objects, values):
    """Breaches of the rules for pods."""
    for item, template in workloads(objects):
        spec, where = template["spec"], name_of(item)
        context = spec.get("securityContext", {})
        yield from unless(context.get("runAsNonRoot") is True, where, "may run as root")
        yield from unless(context.get("runAsUser") != 0, where, "runs as root")
        yield from unless(context.get("seccompProfile") == {"type": "RuntimeDefault"}, where, "has no seccomp profile")
        mounts_token = spec.get("automountServiceAccountToken")
        wanted = values["serviceAccount"]["workloadIdentity"]
        yield from unless(mounts_token is wanted, where, f"automountServiceAccountToken is {mounts_token}, not {wanted}")
        yield from unless(spec.get("serviceAccountName"), where, "uses the default service account")
        shared = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
        yield from unless(not shared, where, f"shares {shared} with its node")
        for volume in spec.get("volumes", []):
            kind = next(key for key in volume if key != "name")
            yield from unless(kind in VOLUMES, where, f"has volume {volume['name']} of kind {kind}")
            sized = kind != "emptyDir" or "sizeLimit" in volume["emptyDir"]
            yield from unless(sized, where, f"has volume {volume['name']} without a limit")
        for container in containers(template):
            yield from of_container(container, f"{where}, container {container['name']}")
        for container in spec["containers"]:
            if container["args"][0] == "serve":
                yield from of_server(container, spec, f"{where}, container {container['name']}")


def of_container(container, where):
    context = container.get("securityContext", {})
    yield from unless(context.get("allowPrivilegeEscalation") is False, where, "may gain privileges")
    yield from unless(context.get("readOnlyRootFilesystem") is True, where, "may write to its root file system")
    yield from unless(context.get("capabilities") == {"drop": ["ALL"]}, where, "does not drop all capabilities")
    yield from unless(not context.get("privileged"), where, "is privileged")
    yield from unless("runAsUser" not in context, where, "chooses a user of its own")
    image = container["image"]
    pinned = "@sha256:" in image or (":" in image.split("/")[-1] and not image.endswith(":latest"))
    yield from unless(pinned, where, f"runs {image}, which may change")
    for amounts in ("requests", "limits"):
        missing = {"cpu", "memory"} - set(container.get("resources", {}).get(amounts, {}))
        yield from unless(not missing, where, f"has no {amounts} of {sorted(missing)}")
    for port in container.get("ports", []):
        yield from unless("hostPort" not in port, where, "takes a port of its node")
    for variable in container.get("env", []):
        looks_secret = any(word in variable["name"] for word in ("SECRET", "PASSWORD", "ACCESS_KEY"))
        yield from unless(not (looks_secret and "value" in variable), where, f"has the secret {variable['name']} in the clear")
    named = {variable["name"] for variable in container.get("env", [])}
    yield from unless(len(named) == len(container.get("env", [])), where, "sets a variable twice")


def of_server(container, spec, where):
    role = container["args"][1]
    first = "/forwardz" if role in ("encoder", "decoder") else "/readyz"
    for probe, path in (("startupProbe", first), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        found = container.get(probe, {}).get("httpGet", {})
        yield from unless(found == {"path": path, "port": "admin"}, where, f"{probe} is {found}, not {path}")
    yield from unless("preStop" in container.get("lifecycle", {}), where, "stops before others know")
    least = GRACE + (60 if role in ("encoder", "decoder") else 15)
    grace = spec.get("terminationGracePeriodSeconds", 30)
    yield from unless(grace >= least, where, f"has {grace} s to stop, less than {least}")
    waiting = [c["name"] for c in spec.get("initContainers", []) if c["args"][:2] != ["models", "pull"]]
    yield from unless(not waiting, where, f"begins with {waiting}, which may wait for another role")


def network(objects, values):
    """Breaches of "exactly these calls, and nothing else"."""
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    if not values["networkPolicy"]["enabled"]:
        yield from unless(not policies, "networkPolicy.enabled false", "there are policies all the same")
        return
    by_role = {}
    for item in policies:
        spec, where = item["spec"], name_of(item)
        role = role_of(spec["podSelector"]["matchLabels"])
        by_role[role] = item
        yield from unless(set(spec["policyTypes"]) == {"Ingress", "Egress"}, where, "does not forbid both ways")
        wanted, found = expected(role, values), set(arrows(role, spec, values))
        for arrow in sorted(found - wanted):
            yield f"{where}: allows {arrow}"
        for arrow in sorted(wanted - found):
            yield f"{where}: does not allow {arrow}"
    for item, template in workloads(objects):
        labels = template["metadata"]["labels"]
        selecting = [p for p in policies if matches(p["spec"]["podSelector"]["matchLabels"], labels)]
        yield from unless(len(selecting) == 1, name_of(item), f"is under {len(selecting)} network policies")
        if labels["e2llm.dev/role"] == "client":
            yield from unless(labels.get("e2llm.dev/client") == "true", name_of(item), "is not let in as a client")
    served = set(by_role) - {"client"}
    yield from unless(served == set(ROLES), "network policies", f"are there for {sorted(served)}")


def expected(role, values):
    """The arrows that a role's policy must have, in words."""
    wanted = {f"{role} -> DNS", f"{role} -> object store"}
    wanted |= {f"{role} -> {to}" for caller, to in CALLS if caller == role}
    if role != "client":
        wanted |= {f"{caller} -> {role}" for caller, to in CALLS if to == role}
        wanted.add(f"Prometheus -> {role}")
        if values["networkPolicy"]["clients"]:
            wanted.add(f"outside clients -> {role}")
        if values["otlpEndpoint"]:
            wanted.add(f"{role} -> collector")
    if role in ("encoder", "decoder") and values["weights"]["source"] == "init":
        wanted.add(f"{role} -> weights")
    if values["serviceAccount"]["workloadIdentity"]:
        wanted.add(f"{role} -> identity")
    return wanted


def arrows(role, spec, values):
    """The arrows that a policy has."""
    policy = values["networkPolicy"]
    outside = {as_key(peer) for peer in policy["clients"]}
    for rule in spec.get("ingress", []):
        ports = [port["port"] for port in rule.get("ports", [])]
        for peer in rule["from"]:
            if as_key(peer) in outside:
                source = "outside clients"
            elif peer in policy["prometheus"]:
                source = "Prometheus"
            else:
                source = role_of(peer["podSelector"]["matchLabels"])
            proper = ["admin"] if source == "Prometheus" else ["grpc"]
            yield f"{source} -> {role}" + ("" if ports == proper else f" on {ports}")
    outside_rules = []
    for rule in spec["egress"]:
        labels = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in rule["to"]]
        if not any("e2llm.dev/role" in each for each in labels):
            outside_rules.append(rule)
            continue
        ports = [port["port"] for port in rule.get("ports", [])]
        for each in labels:
            yield f"{role} -> {role_of(each)}" + ("" if ports == [7700] else f" on {ports}")
    for target in outside_targets(outside_rules, policy):
        yield f"{role} -> {target}"


def outside_targets(rules, policy):
    """What rules to addresses outside the release are for. Two targets may have the same addresses, and then two rules."""
    names = (("DNS", "dns"), ("object store", "objectStore"), ("weights", "weights"), ("collector", "otlp"), ("identity", "identity"))
    fitting, seen = {}, Counter()
    for words, key in names:
        ports = policy[key].get("ports") or [policy[key]["port"]]
        fitting.setdefault(as_key([policy[key]["to"], sorted(ports)]), []).append(words)
    for rule in rules:
        ports = sorted({port["port"] for port in rule.get("ports", [])})
        key = as_key([rule["to"], ports])
        words = fitting.get(key, [])
        yield words[seen[key]] if seen[key] < len(words) else f"{rule['to']} on {ports}"
        seen[key] += 1


def role_of(labels):
    """The role that a selector means."""
    if labels == {"e2llm.dev/client": "true"}:
        return "client"
    whole_release = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "e2llm.dev/role"}
    return labels["e2llm.dev/role"] if set(labels) == whole_release else f"pods {labels}"


def unless(kept, where, breach):
    """One line if a rule is broken."""
    if not kept:
        yield f"{where}: {breach}"
