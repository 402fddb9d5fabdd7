# PORT WORKERS: Net::Server::PreFork with a fixed number of servers.
package Lines;
use strict;
use warnings;
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use base qw(Net::Server::PreFork);

sub process_request {
    my $self = shift;
    $self->{server}{client}->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
    $| = 1;
    while (my $line = <STDIN>) {
        print $line;
    }
}

my ($port, $workers) = @ARGV;
@ARGV = ();
Lines->run(
    host => '127.0.0.1', port => $port, ipv => 4, listen => 1024, log_level => 0,
    min_servers => $workers, max_servers => $workers, min_spare_servers => 0, max_spare_servers => $workers - 1,
    max_requests => 1_000_000_000,
);
