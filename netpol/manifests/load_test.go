package manifests

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func parse(t *testing.T, text string) (pods []string, problems []string) {
	t.Helper()
	s, found := Parse("x.yaml", []byte(text))
	for _, p := range s.Pods {
		pods = append(pods, p.Namespace+"/"+p.Name)
	}
	for _, p := range found {
		problems = append(problems, p.String())
	}
	return pods, problems
}

func TestWorkloads(t *testing.T) {
	template := "template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}"
	for name, test := range map[string]struct {
		text string
		want string
	}{
		"deployment":              {"{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, " + template + "}}", "default/web-0 default/web-1"},
		"one replica by default":  {"{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: web, namespace: a}, spec: {" + template + "}}", "a/web-0"},
		"none":                    {"{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web}, spec: {replicas: 0, " + template + "}}", ""},
		"a few of many":           {"{apiVersion: v1, kind: ReplicationController, metadata: {name: web}, spec: {replicas: 900, " + template + "}}", "default/web-0 default/web-1 default/web-2"},
		"made-up names":           {"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {generateName: p-}}, {apiVersion: v1, kind: Pod, metadata: {generateName: p-}}, {apiVersion: v1, kind: Pod, metadata: {generateName: p-}}]}", "default/p-x default/p-x2 default/p-x3"},
		"beside others' names":    {"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: p-x2}}, {apiVersion: v1, kind: Pod, metadata: {generateName: p-}}, {apiVersion: v1, kind: Pod, metadata: {generateName: p-}}, {apiVersion: v1, kind: Pod, metadata: {generateName: p-}}, {apiVersion: v1, kind: Pod, metadata: {generateName: p-, namespace: q}}]}", "default/p-x default/p-x2 default/p-x3 default/p-x4 q/p-x"},
		"job":                     {"{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {parallelism: 2, " + template + "}}", "default/j-0 default/j-1"},
		"cronjob":                 {"{apiVersion: batch/v1, kind: CronJob, metadata: {name: j}, spec: {schedule: '* * * * *', jobTemplate: {spec: {" + template + "}}}}", "default/j-0"},
		"a daemon set per node":   {"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: n1}}, {apiVersion: v1, kind: Node, metadata: {name: n2}}, {apiVersion: apps/v1, kind: DaemonSet, metadata: {name: d}, spec: {" + template + "}}]}", "default/d-0 default/d-1"},
		"a list without kinds":    {"{apiVersion: v1, kind: PodList, items: [{metadata: {name: p, namespace: q}}]}", "q/p"},
		"documents":               {"# first\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n--- # second\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\n...\n", "default/a default/b"},
		"objects of JSON":         {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}} {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}`, "default/a default/b"},
		"other kinds are skipped": {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: example.com/v1\nkind: Service\nmetadata: {name: a}\n", ""},
		"its pods are there": {"{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {" + template + "}}\n---\n" +
			"{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web-5, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]}, spec: {" + template + "}}\n---\n" +
			"{apiVersion: v1, kind: Pod, metadata: {name: web-5-x, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5, uid: u, controller: true}]}}", "default/web-5-x"},
	} {
		t.Run(name, func(t *testing.T) {
			pods, problems := parse(t, test.text)
			if got := strings.Join(pods, " "); got != test.want || len(problems) > 0 {
				t.Errorf("pods %q, problems %q; want %q", got, problems, test.want)
			}
		})
	}
}

func TestOwnerAndPorts(t *testing.T) {
	s, problems := Parse("x", []byte("{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}}}"))
	if len(problems) > 0 || len(s.Pods) != 1 {
		t.Fatal(problems, s.Pods)
	}
	p := s.Pods[0]
	if o := p.OwnerReferences; len(o) != 1 || o[0].Kind != "Deployment" || o[0].Name != "web" || p.Labels["app"] != "a" || p.Spec.Containers[0].Ports[0].ContainerPort != 80 {
		t.Errorf("%+v", p)
	}
	if len(s.Namespaces) != 1 || s.Namespaces[0].Labels[corev1.LabelMetadataName] != "default" {
		t.Errorf("namespaces %v", s.Namespaces)
	}
}

// TestProblems: all of them are told, with line and path, and what is beside them is read.
func TestProblems(t *testing.T) {
	good := "apiVersion: v1\nkind: Pod\nmetadata: {name: good}\n---\n"
	policy := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "
	cnp := "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: "
	for name, test := range map[string]struct{ text, want string }{
		"syntax":              {"a: b\n  c: [", "x.yaml:6: no valid YAML:"},
		"duplicate key":       {"apiVersion: v1\nkind: Pod\nkind: Node\n", "x.yaml:7: no valid YAML: key \"kind\" already set in map"},
		"no object":           {"- a\n", "x.yaml:5: not an object"},
		"no kind":             {"a: b\n", "x.yaml:5: not an object: it has no apiVersion or no kind"},
		"unknown field":       {policy + "{podSelektor: {}}", `x.yaml:5: NetworkPolicy default/p: unknown field "spec.podSelektor"`},
		"nested, wrong case":  {policy + "{podSelector: {}, ingress: [{From: []}]}", `unknown field "spec.ingress[0].From"`},
		"wrong type":          {policy + "{podSelector: {matchLabels: {a: [b]}}}", "x.yaml:5: NetworkPolicy default/p: json: cannot unmarshal"},
		"selector":            {policy + "{podSelector: {matchExpressions: [{key: a, operator: Is}]}}", "spec.podSelector.matchExpressions[0].operator"},
		"cidr":                {policy + "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/40}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr"},
		"except of another":   {policy + "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}]}]}", "spec.egress[0].to[0].ipBlock.except[0]"},
		"port":                {policy + "{podSelector: {}, ingress: [{ports: [{port: 70000}]}]}", "spec.ingress[0].ports[0].port"},
		"endPort of a name":   {policy + "{podSelector: {}, ingress: [{ports: [{port: http, endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort"},
		"endPort too high":    {policy + "{podSelector: {}, ingress: [{ports: [{port: 1, endPort: 90000}]}]}", "spec.ingress[0].ports[0].endPort"},
		"no name":             {"apiVersion: v1\nkind: Pod\n", "Pod: metadata.name: Required value"},
		"name":                {"apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}\n", "Pod default/a/b: metadata.name: Invalid value"},
		"labels":              {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {'a b': c}}\n", "metadata.labels: Invalid value"},
		"twice":               {"apiVersion: v1\nkind: Pod\nmetadata: {name: good}\n", "x.yaml:5: Pod default/good: is there already, from x.yaml:1"},
		"namespace's label":   {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {kubernetes.io/metadata.name: b}}\n", "metadata.labels[kubernetes.io/metadata.name]"},
		"old version":         {"apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\n", "NetworkPolicy: apiVersion extensions/v1beta1 of this kind is not judged"},
		"another's policy":    {"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\n", "CiliumNetworkPolicy: apiVersion cilium.io/v2 of this kind is not judged"},
		"a list":              {"[1, 2]\n", "not an object: is of the type array"},
		"a word":              {"word\n", "not an object: is of the type string"},
		"items are none":      {"{kind: List, apiVersion: v1, items: 5}\n", "not an object: items is of the type number"},
		"address":             {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIPs: [{ip: x}]}\n", "status.podIPs[0].ip"},
		"container port":      {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: [{containerPort: 0}]}]}\n", "spec.containers[0].ports[0].containerPort"},
		"CNP tier":            {cnp + "{tier: Top, priority: 1, subject: {namespaces: {}}}", "spec.tier: Unsupported value"},
		"CNP priority":        {cnp + "{tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority"},
		"CNP subject":         {cnp + "{tier: Admin, priority: 1, subject: {}}", "spec.subject: Required value"},
		"CNP no peers":        {cnp + "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: []}]}", "spec.ingress[0].from"},
		"CNP two peers":       {cnp + "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {}, namespaces: {}}]}]}", "spec.egress[0].to[0]: Forbidden"},
		"CNP network":         {cnp + "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [x]}]}]}", "spec.egress[0].to[0].networks[0]"},
		"CNP range":           {cnp + "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]}]}", "spec.egress[0].protocols[0].tcp.destinationPort.range"},
		"CNP name of network": {cnp + "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: a}]}]}", "spec.egress[0].protocols[0].destinationNamedPort: Forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			pods, problems := parse(t, good+test.text)
			if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, test.want) }) {
				t.Errorf("problems %q; want one with %q", problems, test.want)
			}
			if !slices.Contains(pods, "default/good") {
				t.Errorf("the pod beside it is lost: %q", pods)
			}
		})
	}
}

func TestInvalidPolicyStays(t *testing.T) {
	s, problems := Parse("x", []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{ports: [{port: 70000}]}]}"))
	if len(problems) != 1 || len(s.NetworkPolicies) != 1 {
		t.Errorf("%v, %v: an invalid policy isolates", problems, s.NetworkPolicies)
	}
}

func TestFoldersAndStdin(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"a/b", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"a/b/one.yml": "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\n", "a/two.JSON": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"two"}}`,
		"note.txt": "no manifest", "empty.yaml": "# nothing\n---\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, problems, err := LoadWith(strings.NewReader("apiVersion: v1\nkind: Pod\nmetadata: {name: three}\n"), dir, "-")
	if err != nil || len(problems) > 0 || len(s.Pods) != 3 {
		t.Errorf("%d pods, %v, %v", len(s.Pods), problems, err)
	}
	for path, why := range map[string]string{"none": "no such file", "empty": "no .yaml, .yml or .json file"} {
		if _, _, err := Load(filepath.Join(dir, path)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, and not %q", path, err, why)
		}
	}
	// A link to a folder is that folder, and the versions of its files that a mounted ConfigMap keeps are not more of them.
	link := filepath.Join(dir, "link")
	if err := os.Symlink("a", link); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "a", "b"), filepath.Join(dir, "a", "..2026")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..2026/one.yml", filepath.Join(dir, "a", "one.yml")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(link)
	for _, path := range []string{link, link + "/", ".", "././"} {
		if s, problems, err = Load(path); err != nil || len(problems) > 0 || len(s.Pods) != 2 {
			t.Errorf("%s: %d pods, %v, %v", path, len(s.Pods), problems, err)
		}
	}
}

// What of a folder is no file that can be read is a problem of that name, and nothing waits for it.
func TestFoldersWithOtherThings(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"), 0o644),
		os.Symlink("nowhere", filepath.Join(dir, "b.yaml")), os.Symlink(".", filepath.Join(dir, "c.yaml")), syscall.Mkfifo(filepath.Join(dir, "d.yaml"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	s, problems, err := Load(dir)
	var got []string
	for _, p := range problems {
		got = append(got, strings.TrimPrefix(p.String(), dir+"/"))
	}
	if len(got) == 3 {
		got[1], _, _ = strings.Cut(got[1], " (")
	}
	if want := []string{"b.yaml: no such file or directory", "c.yaml: is no file", "d.yaml: is no file (prw-r--r--)"}; err != nil || len(s.Pods) != 1 || !slices.Equal(got, want) {
		t.Errorf("%d pods, %v, %q, want %q", len(s.Pods), err, got, want)
	}
}

// TestAddresses: pods get addresses that no block covers but that of length 0, of each family that there is.
func TestAddresses(t *testing.T) {
	for name, test := range map[string]struct {
		policy string
		pod    string // besides
		four   bool
		six    bool
	}{
		"plain":                {"{cidr: 0.0.0.0/0}", "", true, false},
		"the usual range":      {"{cidr: 10.244.0.0/16}", "", true, false},
		"all private ones":     {"{cidr: 0.0.0.0/0, except: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10]}", "", true, false},
		"halves":               {"{cidr: 0.0.0.0/1}", "", true, false},
		"IPv6 blocks":          {"{cidr: 'fd00::/8'}", "", false, true},
		"a pod of both":        {"{cidr: 0.0.0.0/0}", "status: {podIPs: [{ip: 10.244.0.1}, {ip: 'fd00:10:244::1'}]}", true, true},
		"only IPv6":            {"{cidr: '::/0'}", "status: {podIPs: [{ip: 'fd00:10:244::1'}]}", false, true},
		"and a block of IPv4":  {"{cidr: 192.0.2.0/24}", "status: {podIPs: [{ip: 'fd00:10:244::1'}]}", true, true},
		"address alone is old": {"{cidr: 192.0.2.0/24}", "status: {podIP: 10.1.1.1}", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems := Parse("x", []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: "+test.policy+"}]}]}\n---\n"+
				"{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, template: {}}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: other}\n"+test.pod))
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			blocks, seen := blocks(&s), map[netip.Addr]bool{}
			for _, p := range s.Pods {
				var four, six bool
				if p.Status.PodIP == "" {
					t.Errorf("%s has no podIP", p.Name)
				}
				for _, ip := range p.Status.PodIPs {
					a := netip.MustParseAddr(ip.IP)
					four, six = four || a.Is4(), six || a.Is6()
					if seen[a] {
						t.Errorf("%s is given twice", a)
					}
					seen[a] = true
					for _, b := range blocks {
						if b.Contains(a) {
							t.Errorf("%s is in %s", a, b)
						}
					}
				}
				if p.Name != "other" && (four != test.four || six != test.six) {
					t.Errorf("%s has %v", p.Name, p.Status.PodIPs)
				}
			}
		})
	}
	s, problems := Parse("x", []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/1}}, {ipBlock: {cidr: 128.0.0.0/1}}]}]}\n---\n"+
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\n"))
	if len(problems) != 1 || len(s.Pods[0].Status.PodIPs) != 1 || s.Pods[0].Status.PodIP == s.Pods[1].Status.PodIP {
		t.Errorf("with no address left: %v, %v", problems, s.Pods)
	}
}

// TestPodCIDRs: pods get an address of each range that is named, in which no block lies that covers a part of it.
func TestPodCIDRs(t *testing.T) {
	text := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.20.0.0/24]}}, {ipBlock: {cidr: 'fd00::/8'}}]}]}\n---\n" +
		"{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, template: {}}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: other}, status: {podIPs: [{ip: 10.20.1.1}]}}"
	addrs := func(podCIDRs ...string) (out []string, problems []Problem) {
		l, err := LoadAll(strings.NewReader(text), prefixes(podCIDRs...), "-")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range l.State.Pods {
			for _, ip := range p.Status.PodIPs {
				out = append(out, p.Name+" "+ip.IP)
			}
		}
		return out, l.Problems
	}
	for _, c := range []struct {
		podCIDRs []string
		want     []string
		problems int
	}{
		{[]string{"10.20.0.0/16"}, []string{"other 10.20.1.1", "web-0 10.20.1.0", "web-1 10.20.1.2"}, 0},
		{[]string{"fd00:1::/64", "10.30.0.0/16"}, []string{"other 10.20.1.1", "web-0 10.30.0.1", "web-0 fd00:1::1", "web-1 10.30.0.2", "web-1 fd00:1::2"}, 0},
		{[]string{"10.20.0.0/24"}, []string{"other 10.20.1.1", "web-0 10.20.0.1", "web-1 10.20.0.2"}, 0},
		{[]string{"10.20.0.0/23"}, []string{"other 10.20.1.1", "web-0 10.20.1.0", "web-1 10.20.1.2"}, 0},
		{[]string{"10.30.0.0/31"}, []string{"other 10.20.1.1", "web-0 10.30.0.1", "web-1 10.30.0.2"}, 1},
	} {
		if got, problems := addrs(c.podCIDRs...); !slices.Equal(got, c.want) || len(problems) != c.problems {
			t.Errorf("%s: %s, %v, want %s", c.podCIDRs, got, problems, c.want)
		}
	}
}

func TestHostNetworkPodHasItsNodesAddress(t *testing.T) {
	s, problems := Parse("x", []byte("{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 192.0.2.1}]}}\n---\n"+
		"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {hostNetwork: true, nodeName: n1}}"))
	if len(problems) > 0 || s.Pods[0].Status.PodIP != "192.0.2.1" {
		t.Errorf("%v, %v", problems, s.Pods[0].Status)
	}
}

func TestDNSOfTheNodeNetwork(t *testing.T) {
	service := "{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00::a']}}\n"
	if s, _ := Parse("x", []byte(service)); len(s.DNSAddrs) != 2 {
		t.Errorf("%v", s.DNSAddrs)
	}
	if s, _ := Parse("x", []byte(service+"---\n{apiVersion: v1, kind: Pod, metadata: {name: d, namespace: kube-system, labels: {k8s-app: kube-dns}}}")); len(s.DNSAddrs) != 0 {
		t.Errorf("%v although there are pods", s.DNSAddrs)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n{\"kind\": \"List\"}"))
	f.Add([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 1, endPort: 9}]}]}"))
	f.Add([]byte("apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]}"))
	f.Add([]byte("{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: d}, spec: {template: {spec: {containers: [{ports: [{name: a}]}]}}}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, problems := Parse("x", text)
		for _, p := range problems {
			if p.Reason == "" {
				t.Errorf("a problem without a reason: %+v", p)
			}
		}
		for _, p := range s.Pods {
			if p.Name == "" || p.Namespace == "" || len(p.Status.PodIPs) == 0 {
				t.Errorf("pod %+v", p)
			}
		}
	})
}
