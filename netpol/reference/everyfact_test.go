package reference

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// factTests name, for each fact of what implementations get wrong, a test that fails where it is got wrong. What follows from the policies alone the evaluator is
// tested for, by the fact's number; what becomes of packets, pods and changes is tested where it is done.
var factTests = []struct {
	fact  string
	tests []string // folder and name
}{
	{"1 endPort is inclusive, and wants a number", []string{"netpol/reference TestFact01EndPortIsInclusive", "netpol/reference TestFact01EndPortWantsANumber"}},
	{"2 a named port is the destination's", []string{"netpol/reference TestFact02NamedPortIsOfTheDestination", "netpol/reference TestFact02NamedPortOfInitContainers"}},
	{"3 a named port opens no other", []string{"netpol/reference TestFact03NamedPortOpensNoOther"}},
	{"4 a named port toward an address outside matches nothing", []string{"netpol/reference TestFact04NamedPortTowardAnAddressOutside"}},
	{"5 a protocol without port is all its ports alone", []string{"netpol/reference TestFact05ProtocolAloneIsAllItsPorts"}},
	{"6 no protocol is TCP", []string{"netpol/reference TestFact06ProtocolOmittedIsTCP"}},
	{"7 blocks cover pods", []string{"netpol/reference TestFact07IPBlockCoversPods"}},
	{"8 except denies nothing", []string{"netpol/reference TestFact08ExceptIsNoDeny"}},
	{"9 except counts under 0.0.0.0/0", []string{"netpol/reference TestFact09ExceptUnderEverything"}},
	{"10 nil and empty lists", []string{"netpol/reference TestFact10NilAndEmpty"}},
	{"11 nil and empty selectors", []string{"netpol/reference TestFact11SelectorsNilAndEmpty"}},
	{"12 selectors of a peer are and, peers are or", []string{"netpol/reference TestFact12PeerIsAndListIsOr"}},
	{"13 selectors and keys that are missing", []string{"netpol/reference TestFact13SelectorsAndMissingKeys"}},
	{"14 the default of policyTypes", []string{"netpol/reference TestFact14PolicyTypesDefault"}},
	{"15 egress alone isolates no ingress", []string{"netpol/reference TestFact15EgressOnlyLeavesIngress"}},
	{"16 a rule that matches nobody stays closed", []string{"netpol/reference TestFact16RuleWithoutPodsStaysClosed"}},
	{"17 egress with ports alone is to everybody", []string{"netpol/reference TestFact17EgressWithPortsOnly"}},
	{"18 policies add, in any order", []string{"netpol/reference TestFact18UnionWithoutOrder"}},
	{"19 pods in the node's network are its address", []string{"netpol/reference TestFact19HostNetworkIsAnAddress"}},
	{"20 a node reaches its own pods", []string{"netpol/reference TestFact20NodeToItsOwnPods", "bpf TestPolicyOfTheNode"}},
	{"21 other nodes are judged", []string{"netpol/reference TestFact21OtherNodesAreNotExempt", "bpf TestPolicyOfTheNode"}},
	{"22 policies see backends", []string{"netpol/reference TestFact22PoliciesSeeBackends", "bpf TestPolicyOnEveryWay"}},
	{"23 a Service without backends is refused by itself", []string{"bpf TestPolicyOfServicesWithoutBackends"}},
	{"24 a pod and its own address", []string{"netpol/reference TestFact24OwnAddress", "bpf TestPolicyOfHairpins"}},
	{"25 answers of hairpins pass", []string{"bpf TestPolicyOfHairpins"}},
	{"26 established flows when policies change", []string{"bpf TestPolicyChangeUnderFlows", "bpf TestKeptFlowsAreThePodsOwn", "netpol/compiler TestKeepFlows"}},
	{"27 a policy that goes cuts nothing", []string{"bpf TestPolicyChangeUnderFlows"}},
	{"28 answers pass, also of older flows", []string{"bpf TestPolicyAnswers", "bpf TestConnectionsOlderThanIsolation", "bpf TestPodsFromBeforePoliciesGoOn"}},
	{"29 flows that live are kept, and are told apart between two pods of a node", []string{"bpf TestPolicyFlowsAreSwept", "bpf TestPolicyFlowsHaveStates", "bpf TestPolicyFloods"}},
	{"30 isolated from the first instant", []string{"netpol/enforce TestAdmission", "tests/e2e TestNetworkPolicy"}},
	{"31 allows may lag, isolation does not", []string{"netpol/enforce TestAdmissionWaitsForOlderPolicies", "netpol/compiler TestChanges"}},
	{"32 an address without labels is closed", []string{"bpf TestPodWithoutVerdict", "netpol/enforce TestAdmissionFailsClosed"}},
	{"33 terminating pods stay who they are", []string{"netpol/reference TestFact33TerminatingPodsStay", "netpol/enforce TestForcedDeletion"}},
	{"34 pods that ended leave at once, and addresses are used again", []string{"netpol/reference TestFact34EndedPodsLeaveAtOnce", "netpol/compiler TestAddressPassesOn", "bpf TestKeptFlowsAreThePodsOwn"}},
	{"35 namespaces and pods get other labels", []string{"netpol/reference TestFact35Relabelling", "netpol/compiler TestChanges"}},
	{"36 namespaces have their names as labels", []string{"netpol/reference TestFact36NamespacesHaveTheirName", "controlplane/apiserver testNamespaces"}},
	{"37 SCTP is not TCP", []string{"netpol/reference TestFact37SCTPIsNotTCP", "bpf TestPolicyOnEveryWay"}},
	{"38 ICMP, neighbours and errors", []string{"netpol/reference TestFact38ICMP", "bpf TestPolicyOfOtherProtocols", "bpf TestPolicyOfErrorsBehindServices"}},
	{"39 fragments go as their first one", []string{"bpf TestPolicyOfFragments"}},
	{"40 NodePorts are judged as the pod sees them", []string{"netpol/reference TestFact40WhatAPodSees", "bpf TestPolicyOnEveryWay"}},
	{"41 host ports are as NodePorts", []string{"bpf TestPolicyOnEveryWay"}},
	{"42 flows of UDP follow when backends go", []string{"bpf TestBackendsThatGo"}},
	{"43 both families", []string{"netpol/reference TestFact43BothFamilies"}},
	{"44 forgotten DNS is told", []string{"netpol/analysis TestLint"}},
	{"45 one number by several protocols and names", []string{"netpol/reference TestFact45SameNumberOtherName"}},
	{"46 what is denied is dropped in silence", []string{"bpf TestPolicyOnEveryWay", "tests/podnet TestPoliciesBetweenNodes"}},
}

func TestEveryFactHasATest(t *testing.T) {
	text := map[string]string{} // of the tests in a folder
	for _, f := range factTests {
		for _, test := range f.tests {
			folder, name, _ := strings.Cut(test, " ")
			if _, read := text[folder]; !read {
				files, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
				if err != nil || len(files) == 0 {
					t.Fatalf("%s has no tests: %v", folder, err)
				}
				for _, file := range files {
					data, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					text[folder] += string(data)
				}
			}
			if !strings.Contains(text[folder], "\nfunc "+name+"(") {
				t.Errorf("fact %s: %s has no %s", f.fact, folder, name)
			}
		}
	}
}
